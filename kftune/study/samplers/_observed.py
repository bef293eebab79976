"""What a study knows: configurations with values, those being tried, those that were given."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

__all__ = ["is_given", "observations", "pending", "pruned_value", "store_point", "stored_point"]

_POINT_KEY = "kftune:point"
_CHUNK = 2000  # a system attribute holds at most 2045 characters


def observations(study: optuna.Study) -> list[tuple[dict[str, Any], float]]:
    """Parameters and value of every complete or pruned trial, in order; failed ones say nothing."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    worse = max if study.direction != StudyDirection.MAXIMIZE else min
    complete = [t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    found = []
    for trial in trials:
        value = trial.value if trial.state == TrialState.COMPLETE else pruned_value(trial, complete, worse=worse)
        if value is not None:
            found.append((trial.params, value))
    return found


def pruned_value(
    trial: FrozenTrial, complete: Sequence[float], *, worse: Callable[[Iterable[float]], float] = max
) -> float | None:
    """What a pruned trial counts as: its last value, but no better than the median of the complete trials.

    It would have improved had it gone on, but it was ended because others were better.

    Args:
        trial: pruned.
        complete: values of the complete trials.
        worse: ``max`` where values are minimized, else ``min``.

    Returns:
        None if it has no value and no other trial has one.
    """
    last = trial.value if trial.value is not None and not math.isnan(trial.value) else None
    if not complete:
        return last
    return worse(complete) if last is None else worse((last, statistics.median(complete)))


def pending(study: optuna.Study, *, besides: FrozenTrial) -> list[dict[str, Any]]:
    """Parameters of the trials that are running, ``besides`` one."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial.params for trial in running if trial.number != besides.number and trial.params]


def is_given(trial: FrozenTrial, search_space: Mapping[str, BaseDistribution] | None = None) -> bool:
    """Whether the trial was enqueued with values of its own; with ``search_space``, for all of its dimensions."""
    given = trial.system_attrs.get("fixed_params")
    if given is None:
        return False
    return search_space is None or all(name in given for name in search_space)


def stored_point(trial: FrozenTrial) -> dict[str, Any] | None:
    """The point that was proposed for the trial, inactive dimensions included; None if none was stored."""
    attributes = trial.system_attrs
    n_chunks = attributes.get(_POINT_KEY)  # written last: if it is there, so are the chunks
    if n_chunks is None:
        return None
    point: dict[str, Any] = json.loads("".join(attributes[f"{_POINT_KEY}:{i}"] for i in range(n_chunks)))
    return point


def store_point(study: optuna.Study, trial: FrozenTrial, point: Mapping[str, Any]) -> None:
    """Keep a proposed point with its trial, for when it is asked again after an interruption."""
    text = json.dumps(point)
    chunks = [text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK)]
    # Optuna has no public way to attach system attributes; its own samplers do it like this.
    for i, chunk in enumerate(chunks):
        study._storage.set_trial_system_attr(trial._trial_id, f"{_POINT_KEY}:{i}", chunk)
    study._storage.set_trial_system_attr(trial._trial_id, _POINT_KEY, len(chunks))
