"""Samplers: what proposes the next configuration. Adding one is one file here with its ``ENTRIES``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from kftune._registry import Registry
from kftune.space import Space
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers.grid import grid_size

SAMPLERS: Registry[SamplerEntry] = Registry("sampler", "kftune.study.samplers", "kftune.samplers")
"""Every sampler, by its name in a study file."""

__all__ = ["SAMPLERS", "SamplerEntry", "check_sampler", "grid_size", "make_sampler"]


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
    name: str, *, options: Mapping[str, Any], space: Space, seed: int, trial_number: int, n_startup_trials: int
) -> optuna.samplers.BaseSampler:
    """A sampler for one ask of a study of ``space``.

    What it proposes depends on (seed, trial number) and on what the study has stored, so that a fresh one for every
    ask makes an interrupted and resumed study equal to an uninterrupted one.

    Args:
        name: in the registry.
        options: the sampler's own; see :attr:`SamplerEntry.options`.
        space: what to search.
        seed: of the study, not negative.
        trial_number: number of the trial that will be asked for.
        n_startup_trials: trials with a lower number are random, for samplers that learn from results.

    Raises:
        UnknownNameError: no such sampler.
        UsageError: a wrong option, or a dimension that the sampler cannot search.
    """
    resolved = check_sampler(name, options=options, space=space)
    make = SAMPLERS.get(name).make
    return make(space=space, seed=seed, trial_number=trial_number, n_startup_trials=n_startup_trials, **resolved)
