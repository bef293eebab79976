"""What goes into a profile and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from kftune.optim.costs.sizes import LayerSize
from kftune.optim.interface import Phase
from kftune.space import Value


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One optimizer to measure, with settings.

    Attributes:
        label: its name in the results.
        optimizer: registry name.
        params: hyperparameters that are not at their default.
        required: whether it is an error of usage if it cannot be built over the model; otherwise the results say why.
    """

    label: str
    optimizer: str
    params: Mapping[str, Value] = field(default_factory=dict)
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class ProfileSpec:
    """What to measure.

    Attributes:
        problem: registry name.
        contestants: the optimizers.
        batch_size: examples of a step.
        problem_args: the problem's own arguments.
        rounds: pairs of blocks per optimizer, at least 1.
        steps: steps of a block, rounded up to whole periods; None for as many periods as take 0.3 seconds.
        device: ``"cpu"`` or ``"cuda:i"``.
        dtype: ``"float32"`` or ``"float64"``.
        threads: torch threads.
        data_dir: where dataset files are.
        seed: of weights, batches and drawn labels.
    """

    problem: str
    contestants: Sequence[Contestant]
    batch_size: int
    problem_args: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 5
    steps: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    data_dir: str = ""
    seed: int = 0


class Quartiles(NamedTuple):
    """Of several values, with linear interpolation between them."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """The three; nan if there are no values."""
        if not values:
            return cls(np.nan, np.nan, np.nan)
        low, median, high = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75])
        return cls(float(low), float(median), float(high))


@dataclass(frozen=True, kw_only=True)
class Round:
    """Seconds per step of three blocks in a row."""

    sgd_before: float
    optimizer: float
    sgd_after: float

    @property
    def ratio(self) -> float:
        """The optimizer's step as a multiple of SGD's."""
        return self.optimizer / ((self.sgd_before + self.sgd_after) / 2)


@dataclass(frozen=True, kw_only=True)
class OptimizerProfile:
    """One contestant's results.

    Attributes:
        label: as in the specification.
        optimizer: registry name; ``"torch.optim.SGD"`` for the baseline.
        params: all hyperparameters.
        failure: why there are no numbers, in a line; empty if there are.
        period: steps after which the work repeats, the least common multiple of all ``*_every``.
        steps: steps of a block, a multiple of ``period``.
        sgd_steps: steps of the SGD blocks around it.
        rounds: what was measured.
        phases: seconds by phase of an average step; from a block of its own, under the training clock.
        peak_memory_bytes: the most that torch had allocated for model, activations, gradients and state.
        floor: lower bound of the operations, as a multiple of SGD's; None if the method names none.
        floor_flops: operations of an average step by phase, on top of forward and backward pass.
    """

    label: str
    optimizer: str
    params: Mapping[str, Value]
    failure: str = ""
    period: int = 1
    steps: int = 0
    sgd_steps: int = 0
    rounds: tuple[Round, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    floor: float | None = None
    floor_flops: Mapping[Phase, float] = field(default_factory=dict)

    @property
    def ratio(self) -> Quartiles:
        """The step as a multiple of SGD's, over rounds."""
        return Quartiles.of([each.ratio for each in self.rounds])

    @property
    def step_seconds(self) -> float:
        """Seconds of an average step, the median over rounds."""
        return Quartiles.of([each.optimizer for each in self.rounds]).median

    @property
    def phase_ratios(self) -> dict[str, float]:
        """The parts that ``ratio`` is made of, by phase."""
        total = sum(self.phases.values())
        return {name: self.ratio.median * seconds / total for name, seconds in self.phases.items()} if total else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, derived values included."""
        return asdict(self) | {
            "rounds": [asdict(each) | {"ratio": each.ratio} for each in self.rounds],
            "ratio": self.ratio._asdict(),
            "step_seconds": self.step_seconds,
            "phase_ratios": self.phase_ratios,
        }


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured."""

    device: str
    device_name: str
    cpu: str
    cores: int
    threads: int
    system: str
    python: str
    torch: str
    kftune: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All results.

    Attributes:
        spec: what was measured.
        machine: where.
        layers: sizes of the trained linear and convolutional layers.
        n_parameters: of the model, frozen ones included.
        sgd_step_seconds: of torch's SGD, the median over all its blocks.
        sgd_peak_memory_bytes: like an optimizer's.
        sgd_flops: operations of its step, 6·Σ n_rows·d_A·d_G.
        optimizers: in the order of the specification.
    """

    spec: ProfileSpec
    machine: Machine
    layers: tuple[LayerSize, ...]
    n_parameters: int
    sgd_step_seconds: float
    sgd_peak_memory_bytes: int | None
    sgd_flops: float
    optimizers: tuple[OptimizerProfile, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; no paths of this machine."""
        spec = asdict(self.spec)
        return {
            "problem": spec["problem"],
            "problem_args": spec["problem_args"],
            "batch_size": spec["batch_size"],
            "dtype": spec["dtype"],
            "seed": spec["seed"],
            "rounds": spec["rounds"],
            "machine": asdict(self.machine),
            "n_parameters": self.n_parameters,
            "layers": [asdict(layer) for layer in self.layers],
            "sgd": {
                "optimizer": "torch.optim.SGD",
                "step_seconds": self.sgd_step_seconds,
                "peak_memory_bytes": self.sgd_peak_memory_bytes,
                "flops": self.sgd_flops,
            },
            "optimizers": [each.to_dict() for each in self.optimizers],
        }


class Progress(NamedTuple):
    """How far a profile is: what is being measured, and the estimated seconds of all of it and of the rest."""

    label: str
    total_seconds: float
    seconds_left: float
