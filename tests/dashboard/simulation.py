"""Made-up optimizers and their runs: a bowl over the hyperparameters, a power law over time, and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from kftune.results import PHASES, Calibration, CurvePoint, Outcome, RunResult
from kftune.storage.repository import StudyRecord

FLOAT = optuna.distributions.FloatDistribution
LEARNING_RATE = FLOAT(1e-4, 10.0, log=True)
BATCH_SIZE = optuna.distributions.IntDistribution(32, 2000, log=True)


@dataclass(frozen=True)
class Made:
    """How an optimizer of the factory behaves.

    Attributes:
        dimensions: sampled name → distribution.
        updates_per_second: with batches of 128.
        floor: lowest loss it can reach, as a share of the untrained one.
        fixed: hyperparameters that are not searched.
        treatments: what it does to how many of the parameters.
    """

    dimensions: Mapping[str, optuna.distributions.BaseDistribution]
    updates_per_second: float
    floor: float
    fixed: Mapping[str, Any]
    treatments: Mapping[str, int]


OPTIMIZERS = {
    "sgd": Made(
        dimensions={"lr": LEARNING_RATE, "momentum": FLOAT(0.0, 0.99), "batch_size": BATCH_SIZE},
        updates_per_second=400,
        floor=0.085,
        fixed={},
        treatments={"SGD": 2_837_314},
    ),
    "adamw": Made(
        dimensions={"lr": LEARNING_RATE, "1-beta1": FLOAT(1e-3, 0.5, log=True), "batch_size": BATCH_SIZE},
        updates_per_second=350,
        floor=0.07,
        fixed={},
        treatments={"AdamW": 2_837_314},
    ),
    "kfac": Made(
        dimensions={
            "lr": LEARNING_RATE,
            "damping/lr": FLOAT(1e-4, 10.0, log=True),
            "kl_clip": FLOAT(1e-4, 1.0, log=True),
            "statistics_every": optuna.distributions.IntDistribution(1, 50, log=True),
            "batch_size": BATCH_SIZE,
        },
        updates_per_second=90,
        floor=0.055,
        fixed={"fisher": "mc", "inverses_every": 10},
        treatments={"Kronecker-factored": 2_837_000, "SGD": 314},
    ),
}
UNTRAINED = {"mnist_autoencoder": 0.2314, "fashion_mnist_mlp": 2.3026}


def untrained_loss(problem: str) -> float:
    return UNTRAINED.get(problem, 2.3026)


def draw(distribution: Any, is_startup: bool, rng: np.random.Generator) -> Any:
    """Anywhere in the box, or, as a sampler would that has learnt something, near its middle."""
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    share = rng.uniform() if is_startup else float(np.clip(rng.normal(0.55, 0.17), 0, 1))
    low, high = distribution.low, distribution.high
    value = math.exp(math.log(low) + share * math.log(high / low)) if distribution.log else low + share * (high - low)
    return (
        round(value) if isinstance(distribution, optuna.distributions.IntDistribution) else min(max(value, low), high)
    )


def distance(distribution: Any, value: Any) -> float:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return 0.0
    low, high = distribution.low, distribution.high
    share = math.log(value / low) / math.log(high / low) if distribution.log else (value - low) / (high - low)
    return float((share - 0.6) ** 2)


def resolved(sampled: Mapping[str, Any]) -> dict[str, Any]:
    params = dict(sampled)
    if "damping/lr" in params:
        params["damping"] = params.pop("damping/lr") * params["lr"]
    if "1-beta1" in params:
        params["beta1"] = 1 - params.pop("1-beta1")
    return params


def make_run(
    record: StudyRecord,
    made: Made,
    badness: float,
    batch_size: int,
    *,
    budget_seconds: float,
    all_fail: bool,
    rng: np.random.Generator,
) -> RunResult:
    untrained = untrained_loss(record.problem)
    outcome = _outcome(badness, all_fail, rng)
    rate = made.updates_per_second * (128 / batch_size) ** 0.7
    floor = untrained * made.floor * (1 + 6 * badness) * float(rng.normal(1, 0.015))
    has_accuracy = "autoencoder" not in record.problem
    n_points = {Outcome.COMPLETED: 21, Outcome.TIMED_OUT: 9, Outcome.OUT_OF_MEMORY: 0}.get(outcome, 5)
    curve = []
    for i in range(n_points):
        seconds = budget_seconds * i / 20
        loss = floor + (untrained - floor) / (1 + rate * seconds / 60) ** 0.9 * float(rng.normal(1, 0.01) if i else 1)
        if outcome is Outcome.DIVERGED and i == n_points - 1:
            loss = math.nan if rng.uniform() < 0.5 else 1e9
        curve.append(
            CurvePoint(
                train_seconds=seconds,
                update=int(rate * seconds),
                train_loss=loss * 0.97,
                test_loss=loss,
                accuracy=float(np.clip(1 - 0.9 * loss / untrained, 0, 1)) if has_accuracy else None,
                readings=_readings(i / 20, rng) if "kl_clip" in made.dimensions else None,
            )
        )
    seconds = curve[-1].train_seconds if curve else 0.0
    shares = dict(zip(PHASES, (0.03, 0.5, 0.12, 0.15, 0.1, 0.08, 0.02), strict=True))
    messages = {
        Outcome.DIVERGED: "the loss is not finite",
        Outcome.OUT_OF_MEMORY: "needs 92 GiB",
        Outcome.TIMED_OUT: "killed after 420 s of wall time",
        Outcome.CRASHED: "Traceback (most recent call last):\n  ...\nRuntimeError: <b>boom</b> & more",
    }
    return RunResult(
        outcome=outcome,
        message=messages.get(outcome, ""),
        curve=tuple(curve),
        train_seconds=seconds,
        overshoot_seconds=0.004,
        evaluation_seconds=0.03 * n_points,
        setup_seconds=0.4,
        warmup_seconds=0.1,
        phase_seconds={phase: share * seconds for phase, share in shares.items()},
        updates=int(rate * seconds),
        examples=int(rate * seconds) * batch_size,
        peak_memory_bytes=700 * 2**20,
        device_name="AMD EPYC 7763 64-Core Processor",
        calibration=Calibration(
            train_seconds=(0.0, max(seconds, 1.0)),
            seconds=tuple(0.1 * float(rng.lognormal(0, 0.03)) * (1.3 if rng.uniform() < 0.02 else 1) for _ in range(2)),
            reference=0.1,
        ),
        treatments=made.treatments,
    )


def _readings(share: float, rng: np.random.Generator) -> dict[str, float]:
    """What K-FAC says of itself as training goes on."""
    return {
        "lr": 0.3,
        "damping": 0.1 * math.exp(-4 * share),
        "momentum": 0.5 + 0.4 * share,
        "kl_clip_active": float(np.clip(1 - 1.5 * share + rng.normal(0, 0.05), 0, 1)),
    }


def _outcome(badness: float, all_fail: bool, rng: np.random.Generator) -> Outcome:
    if all_fail or badness > rng.uniform(0.35, 0.8):
        return Outcome.DIVERGED
    rare = (Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT, Outcome.CRASHED)
    return rare[rng.integers(3)] if rng.uniform() < 0.04 else Outcome.COMPLETED
