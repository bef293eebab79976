"""Micro-batches that fit in a device's memory: looked for once for each study and device, and stored."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime

from kftune.results import RunSpec
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, StudyPlan
from kftune.study.executors.ledger import Ledger
from kftune.study.executors.protocol import Executor

__all__ = ["MicroBatches"]


class MicroBatches:
    """Knows what ``micro_batch`` of a study file means for each of its studies on each device.

    Args:
        config: the study file.
        repository: where sizes that were found are stored.
        ledger: told how long looking takes.
        say: told of sizes that are smaller than the batches.
    """

    def __init__(
        self, config: StudyConfig, *, repository: Repository, ledger: Ledger, say: Callable[[str], None]
    ) -> None:
        self._wanted = config.micro_batch
        self._repository = repository
        self._ledger = ledger
        self._say = say
        self._known: dict[tuple[str, str], int | None] = {}

    def size(self, plan: StudyPlan, spec: RunSpec, *, executor: Executor, slot: int) -> int | None:
        """The most examples of a micro-batch; None for batches as they are.

        A size that fits is looked for with the study's largest batch.

        Args:
            plan: the study.
            spec: one of its runs, for the slot's device.
            executor: to try sizes on.
            slot: an idle one of it.
        """
        if self._wanted != "auto":
            return self._wanted
        place = (plan.study, spec.device)
        if place not in self._known:
            key = _key(plan, spec.device)
            found = self._repository.micro_batch(key)
            if found is None:
                wanted = plan.largest_batch()
                with self._ledger.counted("probing"):
                    found = executor.find_micro_batch(slot, spec, wanted=wanted) or 0
                self._repository.save_micro_batch(key, found, found_at=datetime.now(UTC))
                if found < wanted:
                    what = f"micro-batches of at most {found} examples" if found else "no micro-batch"
                    self._say(f"{plan.study}: {what} of {wanted} fit in the memory of {spec.device}")
            self._known[place] = found or None
        return self._known[place]


def _key(plan: StudyPlan, device: str) -> str:
    """What the size depends on, as text."""
    identity = plan.identity()
    what = {key: identity[key] for key in ("problem", "optimizer", "space", "dtype")}
    return json.dumps({**what, "host": socket.gethostname(), "device": device}, sort_keys=True)
