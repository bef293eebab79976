"""The only code that touches GPyOpt, which has been archived since January 2023."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kftune.study.samplers._columns import Columns, Points

_N_RESTARTS = 5
_MAX_ITERATIONS = 1000
_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class GPyOptSettings:
    """What can be chosen of the search.

    Attributes:
        acquisition: ``"EI"`` expected improvement, ``"MPI"`` probability of improvement, or ``"LCB"`` lower
            confidence bound.
        jitter: improvements smaller than this many standard deviations of the values do not count (EI and MPI).
        exploration_weight: standard deviations below the mean at which the bound lies (LCB).
        faithful: GPyOpt as it comes, see :class:`GPyOptSampler`.
    """

    acquisition: str = "EI"
    jitter: float = 0.01
    exploration_weight: float = 2.0
    faithful: bool = False


def propose(
    points: Points, values: NDArray[np.float64], *, columns: Columns, settings: GPyOptSettings, seed: int
) -> NDArray[np.float64]:
    """The point that GPyOpt proposes.

    numpy's global generator and the warning filters, which GPyOpt uses and changes, are as before afterwards.

    Args:
        points: observed points.
        values: their values (n,), finite, to be minimized.
        columns: see there.
        settings: see there.
        seed: in {0, …, 2³²−1}; fixes the point.

    Returns:
        A point (d,); what it has in inactive columns means nothing.

    Raises:
        numpy.linalg.LinAlgError: the model's covariance cannot be factorized.
    """
    with lone_user(seed):
        (point,) = _make_search(points, values[:, None], columns, settings).suggest_next_locations()
    return np.asarray(point, dtype=np.float64)


@contextmanager
def lone_user(seed: int) -> Iterator[None]:
    """GPy and GPyOpt with numpy's global generator at ``seed``; afterwards it and the warning filters are as before."""
    with _LOCK, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # overflows while the likelihood is searched, deprecations of old code
        import GPyOpt  # noqa: F401  # before the seeding, in case that the first import draws random numbers

        state = np.random.get_state()
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


def _make_search(points: Points, values: NDArray[np.float64], columns: Columns, settings: GPyOptSettings) -> Any:
    """What ``GPyOpt.methods.BayesianOptimization`` puts together, without its messages on standard output."""
    from GPyOpt.acquisitions import AcquisitionEI, AcquisitionLCB, AcquisitionMPI
    from GPyOpt.core.bo import BO
    from GPyOpt.core.evaluators import Sequential
    from GPyOpt.core.task.space import Design_space
    from GPyOpt.models import GPModel
    from GPyOpt.optimization import AcquisitionOptimizer

    space = Design_space([_variable(i, n) for i, n in enumerate(columns.n_categories)])
    model = GPModel(optimizer="lbfgs", max_iters=_MAX_ITERATIONS, optimize_restarts=_N_RESTARTS, verbose=False)
    # Predicts at all points; EI and MPI ask for it at every step although it changes with a fit only, of which there
    # is one. Half the time of an ask at 150 trials, most of it beyond.
    model.get_fmin = functools.cache(model.get_fmin)
    if columns.inactive is not None:
        _ignore_inactive(model, columns, columns.inactive)
    optimizer = AcquisitionOptimizer(space)
    if settings.acquisition == "LCB":
        acquisition = AcquisitionLCB(model, space, optimizer, exploration_weight=settings.exploration_weight)
    else:
        acquisition_class = AcquisitionEI if settings.acquisition == "EI" else AcquisitionMPI
        acquisition = acquisition_class(model, space, optimizer, jitter=settings.jitter)
    return BO(model, space, None, acquisition, Sequential(acquisition), points, values)


def _ignore_inactive(model: Any, columns: Columns, inactive: Callable[[Points], NDArray[np.bool_]]) -> None:
    """Let the model predict the same wherever points differ in inactive columns only.

    Without this, what was observed at the neutral value would look unexplored at all others, and would be proposed
    again and again.
    """
    kinds = columns.n_categories
    widths = [n or 1 for n in kinds]  # the model has a column per category
    starts = np.cumsum(widths)[:-1]
    neutral = np.concatenate([np.eye(n)[int(x)] if n else [x] for n, x in zip(kinds, columns.neutral, strict=True)])

    def settle(model_points: Points) -> tuple[Points, NDArray[np.bool_]]:
        model_points = np.atleast_2d(model_points)
        parts = zip(kinds, np.split(model_points, starts, axis=1), strict=True)
        rounded = np.stack([part.argmax(axis=1) if n else part[:, 0] for n, part in parts], axis=1)
        mask = np.repeat(inactive(rounded.astype(np.float64)), widths, axis=1)
        return np.where(mask, neutral, model_points), mask

    predict, predict_with_gradients = model.predict, model.predict_withGradients

    def settled_predict(model_points: Points, with_noise: bool = True) -> Any:
        return predict(settle(model_points)[0], with_noise)

    def settled_predict_with_gradients(model_points: Points) -> Any:
        settled, mask = settle(model_points)
        mean, deviation, mean_gradient, deviation_gradient = predict_with_gradients(settled)
        return mean, deviation, np.where(mask, 0.0, mean_gradient), np.where(mask, 0.0, deviation_gradient)

    model.predict, model.predict_withGradients = settled_predict, settled_predict_with_gradients


def _variable(index: int, n_categories: int | None) -> dict[str, Any]:
    if n_categories is None:
        return {"name": f"x{index}", "type": "continuous", "domain": (0.0, 1.0)}
    return {"name": f"x{index}", "type": "categorical", "domain": tuple(range(n_categories))}
