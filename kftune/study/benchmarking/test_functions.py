"""Functions to test samplers on: losses as hyperparameters make them, with a known least value.

Positions are coordinates in [0, 1] on each dimension's scale. A loss is ``LEAST`` times exp(q), with q ≥ 0 and q = 0 at
the optimum; it is observed with noise that is normal on its logarithm. What is worse than the untrained model, or
diverges, is observed as the untrained model's loss exactly, as in a study. The optimum lies elsewhere for every seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kftune.space import Categorical, Condition, Dimension, Float, Int, Space
from kftune.study.samplers.coordinates import distributions, to_unit

__all__ = ["LEAST", "TEST_FUNCTIONS", "UNTRAINED", "Instance", "TestFunction"]

LEAST, UNTRAINED = 0.01, 0.23
"""The loss at the optimum and that of the untrained model (those of the digits autoencoder, roughly)."""

Exponent: TypeAlias = Callable[[Mapping[str, float]], float]
"""Offsets (coordinate − optimum's, by sampled name; inactive dimensions absent) → q; infinite where it diverges."""


@dataclass(frozen=True, kw_only=True)
class TestFunction:
    """A family of losses over one space.

    Attributes:
        name: unique.
        summary: what is hard about it.
        space: what is searched.
        noise: standard deviation of the observed loss's logarithm.
        make: a generator, which places the optimum → q as a function of coordinates by sampled name and choices.
    """

    __test__ = False  # pytest takes it for a class of tests

    name: str
    summary: str
    space: Space
    noise: float
    make: Callable[[np.random.Generator], Callable[[Mapping[str, Any]], float]]

    def instance(self, seed: int) -> Instance:
        """The loss of one seed."""
        return Instance(self, seed)


class Instance:
    """One loss of a family, with its optimum where the seed puts it.

    Args:
        function: the family.
        seed: of the optimum's place and of the noise.
    """

    def __init__(self, function: TestFunction, seed: int) -> None:
        self._function = function
        self._seed = seed
        self._distributions = distributions(function.space)
        self._exponent = function.make(np.random.default_rng(seed))

    def loss(self, sampled: Mapping[str, Any]) -> float:
        """The loss without noise, at most ``UNTRAINED``.

        Args:
            sampled: a trial's ``params``: values by sampled name.
        """
        place = {
            name: value if isinstance(value, str) else to_unit(self._distributions[name], value)
            for name, value in sampled.items()
        }
        return min(LEAST * float(np.exp(min(self._exponent(place), 50.0))), UNTRAINED)

    def observe(self, sampled: Mapping[str, Any], *, trial_number: int) -> float:
        """The loss as trial ``trial_number`` measures it: equal numbers have equal noise, in every sampler's study."""
        true = self.loss(sampled)
        if true >= UNTRAINED:
            return UNTRAINED
        noise = np.random.default_rng((self._seed, trial_number)).standard_normal()
        return min(true * float(np.exp(self._function.noise * noise)), UNTRAINED)


def _centre(generator: np.random.Generator, names: tuple[str, ...]) -> dict[str, float]:
    """An optimum that is not at an edge."""
    return {name: generator.uniform(0.2, 0.8) for name in names}


def _around_a_centre(names: tuple[str, ...], exponent: Exponent) -> Callable[[np.random.Generator], Any]:
    def make(generator: np.random.Generator) -> Callable[[Mapping[str, Any]], float]:
        centre = _centre(generator, names)
        return lambda place: exponent({name: x - centre[name] for name, x in place.items() if name in centre})

    return make


def _sgd(d: Mapping[str, float]) -> float:
    # The noise of the gradient goes with lr/((1 − momentum)·batch size): a valley across three axes.
    speed = d["lr"] - 0.5 * d["1-momentum"] - 0.5 * d["batch_size"]
    if speed > 0.2:
        return float("inf")
    rest = 4 * d["1-momentum"] ** 2 + 4 * d["batch_size"] ** 2 + d["weight_decay"] ** 2
    return 25 * speed**2 + rest


def _kfac(d: Mapping[str, float]) -> float:
    if d["lr"] - d["damping/lr"] > 0.4:
        return float("inf")
    valley = 15 * (d["lr"] - 0.7 * d["damping/lr"]) ** 2 + 5 * d["damping/lr"] ** 2
    return valley + 4 * d["kl_clip"] ** 2 + 3 * d["1-momentum"] ** 2 + 0.1 * d["1-factor_decay"] ** 2


def _curved(d: Mapping[str, float]) -> float:
    x = [d[name] for name in sorted(d)]
    bends = sum(4 * (b - 2 * a**2) ** 2 for a, b in itertools.pairwise(x))
    return float(bends + sum(a**2 for a in x))


_HARTMANN_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_HARTMANN_C = np.array([1.0, 1.2, 3.0, 3.2])
_HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_HARTMANN_BEST = np.array([0.20168952, 0.15001069, 0.47687398, 0.27533243, 0.31165162, 0.65730054])


def _hartmann(x: NDArray[np.float64]) -> float:
    """Hartmann's function in six dimensions, six local minima; see Picheny et al. 2013."""
    return -float(_HARTMANN_C @ np.exp(-(_HARTMANN_A * (x - _HARTMANN_P) ** 2).sum(axis=1)))


def _make_hartmann(generator: np.random.Generator) -> Callable[[Mapping[str, Any]], float]:
    order, flipped = generator.permutation(6), generator.random(6) < 0.5
    least = _hartmann(_HARTMANN_BEST)

    def exponent(place: Mapping[str, Any]) -> float:
        u = np.array([place[name] for name in sorted(place)])
        return max(_hartmann(np.where(flipped, 1 - u, u)[order]) - least, 0.0)

    return exponent


def _make_branches(generator: np.random.Generator) -> Callable[[Mapping[str, Any]], float]:
    centre = _centre(generator, ("lr", "damping", "1-momentum", "rate", "warmup"))
    offsets = dict(zip(generator.permutation(["none", "linear", "exponential"]), (0.0, 0.25, 0.5), strict=True))
    shift = {"none": -0.15, "linear": 0.0, "exponential": 0.15}

    def exponent(place: Mapping[str, Any]) -> float:
        schedule = place["schedule"]
        d = {name: x - centre[name] for name, x in place.items() if name in centre}
        step = d["lr"] - shift[schedule] - 0.5 * d["damping"]
        if step > 0.3:
            return float("inf")
        shared = 15 * step**2 + 4 * d["damping"] ** 2 + 3 * d["1-momentum"] ** 2
        own = 4 * d.get("rate", 0.0) ** 2 + 3 * d.get("warmup", 0.0) ** 2
        return float(offsets[schedule] + shared + own)

    return exponent


_LR = Float(low=1e-4, high=10.0, log=True)
_MOMENTUM = Float(low=0.0, high=0.99, log=True, complement=True)
_SGD: dict[str, Float | Int] = {
    "lr": _LR,
    "momentum": _MOMENTUM,
    "batch_size": Int(low=16, high=4096, log=True),
    "weight_decay": Float(low=1e-7, high=1e-1, log=True),
}
_KFAC: dict[str, Float | Int] = {
    "lr": _LR,
    "damping": Float(low=1e-4, high=10.0, log=True, relative_to="lr"),
    "kl_clip": Float(low=1e-4, high=1.0, log=True),
    "momentum": _MOMENTUM,
    "factor_decay": Float(low=0.5, high=0.999, log=True, complement=True),
}
_BRANCHES: dict[str, Dimension] = {
    "lr": _LR,
    "damping": Float(low=1e-5, high=1.0, log=True),
    "momentum": _MOMENTUM,
    "schedule": Categorical(choices=("none", "linear", "exponential")),
    "rate": Float(low=1e-3, high=1.0, log=True, when=Condition("schedule", ("exponential", "linear"))),
    "warmup": Int(low=1, high=100, log=True, when=Condition("schedule", ("linear",))),
}


def _log_axes(n: int) -> Space:
    return Space({f"x{i}": Float(low=1e-5, high=1.0, log=True) for i in range(n)})


def _names(dimensions: Mapping[str, Float | Int]) -> tuple[str, ...]:
    return tuple(dimension.sampled_name(name) for name, dimension in dimensions.items())


TEST_FUNCTIONS: Mapping[str, TestFunction] = {
    function.name: function
    for function in (
        TestFunction(
            name="sgd",
            summary="4 dimensions, one a whole number: a valley across three axes, a cliff where it diverges",
            space=Space(dict(_SGD)),
            noise=0.05,
            make=_around_a_centre(_names(_SGD), _sgd),
        ),
        TestFunction(
            name="kfac",
            summary="5 dimensions: damping relative to lr, a cliff where it diverges, one that hardly matters",
            space=Space(dict(_KFAC)),
            noise=0.1,
            make=_around_a_centre(_names(_KFAC), _kfac),
        ),
        TestFunction(
            name="curved",
            summary="5 dimensions: a chain of bent valleys",
            space=_log_axes(5),
            noise=0.05,
            make=_around_a_centre(tuple(_log_axes(5).dimensions), _curved),
        ),
        TestFunction(
            name="hartmann",
            summary="6 dimensions: six local minima",
            space=_log_axes(6),
            noise=0.1,
            make=_make_hartmann,
        ),
        TestFunction(
            name="branches",
            summary="6 dimensions, two of which exist for some choices of a third; a cliff",
            space=Space(_BRANCHES),
            noise=0.1,
            make=_make_branches,
        ),
    )
}
"""By name, in the order of tables."""
