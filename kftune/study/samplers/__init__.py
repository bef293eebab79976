"""Samplers: what proposes the next configuration. Adding one is one file here with its ``ENTRIES``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from kftune._registry import Registry
from kftune.space import Space
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers._target import TargetSamplerEntry, sampler_from

SAMPLERS: Registry[SamplerEntry] = Registry(
    "sampler", "kftune.study.samplers", "kftune.samplers", from_target=sampler_from
)
"""Every sampler, by its name in a study file; also anyone's own, by its target."""

__all__ = [
    "SAMPLERS",
    "SamplerEntry",
    "TargetSamplerEntry",
    "check_sampler",
    "make_sampler",
    "planned_trials",
]


def check_sampler(name: str, *, options: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Check that a sampler exists, knows its options and can search ``space``; returns all options.

    Raises:
        UnknownNameError: no such sampler.
        UsageError: a wrong option, or a dimension that the sampler cannot search.
    """
    entry = SAMPLERS.get(name)
    resolved = entry.resolve_options(options)
    entry.check_space(space)
    return resolved


def make_sampler(
    name: str,
    *,
    options: Mapping[str, Any],
    space: Space,
    seed: int,
    trial_number: int,
    n_startup_trials: int,
    widest: Space | None = None,
) -> optuna.samplers.BaseSampler:
    """A sampler for one ask of a study of ``space``.

    What it proposes depends on (seed, trial number) and on what the study has stored, so that a fresh one for every
    ask makes an interrupted and resumed study equal to an uninterrupted one.

    Args:
        name: in the registry, or a target.
        options: the sampler's own; see :attr:`SamplerEntry.options`.
        space: what to search.
        seed: of the study, not negative.
        trial_number: number of the trial that will be asked for.
        n_startup_trials: trials with a lower number are random, for samplers that learn from results.
        widest: what the trial will be asked for, if the sampler may leave ``space``; by default as far as it would go.

    Raises:
        UnknownNameError: no such sampler.
        UsageError: a wrong option, or a dimension that the sampler cannot search.
    """
    resolved = check_sampler(name, options=options, space=space)
    entry = SAMPLERS.get(name)
    bounds = {} if entry.widen is None else {"widest": widest or entry.widen(space, resolved)}
    return entry.make(
        space=space, seed=seed, trial_number=trial_number, n_startup_trials=n_startup_trials, **bounds, **resolved
    )


def planned_trials(
    name: str,
    *,
    options: Mapping[str, Any],
    space: Space,
    seed: int,
    trials: Sequence[FrozenTrial],
    most: int,
    widest: Space | None = None,
) -> int:
    """How many trials a study will have, as far as its trials so far tell.

    Args:
        name: see :func:`make_sampler`, as for ``options``, ``space``, ``seed`` and ``widest``.
        options: see there.
        space: see there.
        seed: see there.
        trials: the study's so far.
        most: the number that was asked for; only a grid that has no more configurations has fewer.
        widest: see there.
    """
    entry = SAMPLERS.get(name)
    if entry.count is None:
        return most
    resolved = entry.resolve_options(options)
    bounds = {} if entry.widen is None else {"widest": widest or entry.widen(space, resolved)}
    return min(most, entry.count(space=space, seed=seed, trials=trials, **bounds, **resolved))
