"""Anyone's Optuna sampler as an entry: a class, a function that returns one, or an entry itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from kftune._targets import target_name, user_error
from kftune.errors import KftuneError, UsageError, UserCodeError, suggestion
from kftune.space import Space
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers.coordinates import contains
from kftune.study.samplers.wrapped import ReproducibleSampler

__all__ = ["TargetSamplerEntry", "sampler_from"]

_KINDS = "an Optuna sampler's class, a function that returns one, or a kftune.study.samplers.SamplerEntry"
_NAMED = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, kw_only=True)
class TargetSamplerEntry(SamplerEntry):
    """A sampler that no registry knows.

    Attributes:
        target: ``package.module:attribute``.
        construct: (seed, arguments) → the sampler itself.
        required: arguments without a default.
        takes_seed: whether it can be given a seed.
        accepts_any: whether it takes arguments that its signature does not name.
    """

    target: str
    construct: Callable[[int, Mapping[str, Any]], optuna.samplers.BaseSampler]
    required: tuple[str, ...] = ()
    takes_seed: bool = True
    accepts_any: bool = False

    def resolve_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as given; what they may be only their function knows.

        Raises:
            UsageError: an argument that it has not, or one that is missing.
        """
        known = (*self.required, *self.options)
        for name in options:
            if name == "seed" and self.takes_seed:
                raise UsageError(f"sampler {self.target!r}: seed is set by kftune, from the study file's")
            if name not in known and not self.accepts_any:
                hint = suggestion(name, known) if known else "; it takes none"
                raise UsageError(f"sampler {self.target!r} has no argument {name!r}{hint}")
        for name in self.required:
            if name not in options:
                raise UsageError(f"sampler {self.target!r} needs the argument {name!r}")
        return dict(options)


class _UserSampler(ReproducibleSampler):
    """A user's sampler, its errors with their traceback."""

    def __init__(
        self, target: str, make: Callable[[int], optuna.samplers.BaseSampler], *, seed: int, n_startup_trials: int
    ) -> None:
        super().__init__(make, seed=seed, n_startup_trials=n_startup_trials)
        self._target = target

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        with _blamed_on(self._target, f"failed at trial {trial.number}"):
            return super().infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with _blamed_on(self._target, f"failed at trial {trial.number}"):
            return super().sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        with _blamed_on(self._target, f"failed at trial {trial.number}, {param_name}"):
            value = super().sample_independent(study, trial, param_name, param_distribution)
            # Optuna would take a value outside.
            inside = contains(param_distribution, value)
        if not inside:
            what = f"proposed {param_name}={value!r} at trial {trial.number}, outside of {param_distribution}"
            raise UserCodeError(f"the sampler {self._target!r} {what}")
        return value

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        with _blamed_on(self._target, f"failed before trial {trial.number}"):
            self._sampler(trial).before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        with _blamed_on(self._target, f"failed after trial {trial.number}"):
            self._sampler(trial).after_trial(study, trial, state, values)


@contextmanager
def _blamed_on(target: str, what: str) -> Iterator[None]:
    try:
        yield
    except (KftuneError, StorageInternalError):
        raise  # ours, or the database's
    except Exception as error:
        raise user_error(f"the sampler {target!r} {what}", error) from error


def sampler_from(target: str, found: object) -> SamplerEntry:
    """The entry that an object of anyone's stands for.

    A class or function is called anew for every trial, as ``found(seed=…, **args)``, without ``seed`` if it takes none:
    what it proposes may depend on the seed, on its arguments and on what the study has stored, on nothing else.

    Args:
        target: where ``found`` is, for messages.
        found: an entry, a class or a function.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(found, SamplerEntry):
        return found
    is_sampler = inspect.isclass(found) and issubclass(found, optuna.samplers.BaseSampler)
    if not callable(found) or not (is_sampler or inspect.isroutine(found)):
        raise UsageError(f"{target!r} is no sampler; it must be {_KINDS}")
    missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
    if missing:
        raise UsageError(f"{target!r} does not implement {missing} of optuna.samplers.BaseSampler")
    signature = inspect.signature(found).parameters.values()
    arguments = [a for a in signature if a.kind in _NAMED and a.name != "seed"]
    takes_seed = any(a.name == "seed" for a in signature)
    construct = functools.partial(_construct, target, found, takes_seed)
    return TargetSamplerEntry(
        name=target_name(target),
        make=functools.partial(_make, target, construct),
        summary=(inspect.getdoc(found) or "").partition("\n")[0],
        source=target,
        options={a.name: a.default for a in arguments if a.default is not a.empty},
        target=target,
        construct=construct,
        required=tuple(a.name for a in arguments if a.default is a.empty),
        takes_seed=takes_seed,
        accepts_any=any(a.kind is a.VAR_KEYWORD for a in signature),
    )


def _construct(
    target: str, found: Callable[..., object], takes_seed: bool, seed: int, args: Mapping[str, Any]
) -> optuna.samplers.BaseSampler:
    """The sampler itself.

    Raises:
        UserCodeError: it cannot be made.
        UsageError: what comes back is no sampler.
    """
    with _blamed_on(target, "cannot be made"):
        made = found(**args, **({"seed": seed} if takes_seed else {}))
    if not isinstance(made, optuna.samplers.BaseSampler):
        raise UsageError(f"{target!r} returned a {type(made).__name__}, not an Optuna sampler")
    return made


def _make(
    target: str,
    construct: Callable[[int, Mapping[str, Any]], optuna.samplers.BaseSampler],
    *,
    space: Space,
    seed: int,
    trial_number: int,
    n_startup_trials: int,
    **args: Any,
) -> optuna.samplers.BaseSampler:
    return _UserSampler(target, lambda own: construct(own, args), seed=seed, n_startup_trials=n_startup_trials)
