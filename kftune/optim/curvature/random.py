"""The chance of an optimizer: one stream of random numbers per process, on the device where it is used."""

from __future__ import annotations

from typing import Any

import torch

_STRIDE = 0x9E3779B97F4A7C15  # far from all small numbers, so that streams do not overlap


class Random:
    """A generator that follows the model to its device.

    Args:
        seed: of the stream.
        process: rank of this process; each has a stream of its own, so that equal examples get unequal labels.
        device: where numbers are drawn at first.
    """

    def __init__(self, seed: int, *, process: int, device: torch.device) -> None:
        self._seed, self._process = seed, process
        self._n_restarts = 0
        self._generator = self._new(device)

    def on(self, device: torch.device) -> torch.Generator:
        """The generator, on ``device``; begun anew there if the model has been moved."""
        if self._generator.device.type != device.type or device.index not in (None, self._generator.device.index):
            self._restart(device)
        return self._generator

    def state(self) -> dict[str, Any]:
        """Everything :meth:`load` needs."""
        return {
            "state": self._generator.get_state(),
            "device": self._generator.device.type,
            "process": self._process,
            "n_restarts": self._n_restarts,
            "seed": self._seed,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where another one was: bit for bit on the same kind of device, and in the same process.

        Otherwise the stream is a new one, again a function of the seed alone: generators of CPU and CUDA have states of
        their own, and processes that all load the first one's state must not all draw the same numbers.
        """
        self._n_restarts = state["n_restarts"]
        self._seed = state.get("seed", self._seed)  # states of before do not tell
        if (state["device"], state["process"]) == (self._generator.device.type, self._process):
            self._generator.set_state(state["state"].cpu())
        else:
            self._restart(self._generator.device)

    def __getstate__(self) -> dict[str, Any]:
        return self.state() | {"device": str(self._generator.device)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._seed, self._process, self._n_restarts = state["seed"], state["process"], state["n_restarts"]
        self._generator = torch.Generator(device=state["device"])
        self._generator.set_state(state["state"].cpu())

    def _restart(self, device: torch.device) -> None:
        self._n_restarts += 1
        self._generator = self._new(device)

    def _new(self, device: torch.device) -> torch.Generator:
        seed = (self._seed + _STRIDE * (self._process + 2**16 * self._n_restarts)) % 2**63
        return torch.Generator(device=device).manual_seed(seed)
