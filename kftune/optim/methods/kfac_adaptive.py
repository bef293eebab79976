"""K-FAC that sets the length of its own updates.

Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015, sections 6.4 to 7 and
13, as :class:`~kftune.optim.methods.kfac.KFAC` does it with ``rescale``. With Δ = −P the preconditioned gradient, δ₀
the previous update and M the quadratic model of the objective h by the exact Fisher of the batch:

1. of three γ in the damping of the factors, the one with the lowest M(δ) is kept (6.6);
2. δ = αΔ + μδ₀ at the lowest M, solved for exactly (6.4, 7), and θ ← θ + ηδ;
3. λ follows ρ = (h(θ + δ) − h(θ))/(M(δ) − M(0)) by the Levenberg-Marquardt rule (6.5);
4. what is evaluated is a running average of the iterates (13).

The algorithm is :class:`~kftune.optim.preconditioning.adaptive.optimizer.AdaptiveOptimizer`'s, which also makes K-FAC's
updates without ``rescale``: whether a K-FAC is adaptive is its option, not its class.
"""

from __future__ import annotations

from typing import Any

from kftune.optim.costs.layerwise import kfac_floor
from kftune.optim.entry import OptimizerEntry
from kftune.optim.methods.kfac import INVALID, KFAC
from kftune.space import Float, Int, Space, Value

_ADAPTIVE: dict[str, Value] = {
    "rescale": "alpha_and_momentum",
    "adaptive_damping": True,
    "adaptive_gamma": True,
    "lr": 1.0,
    "kl_clip": None,
    "momentum": 0.0,
}
_OWN_STEP: dict[str, Any] = {"rescale": "alpha", "kl_clip": None, "momentum": 0.0}
_INVALID_ADAPTIVE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"rescale": "beta"}, "rescale must be one of none, alpha, alpha_and_momentum, got 'beta'"),
    ({"rescale": "alpha"}, "it needs kl_clip=None, momentum=0 and nesterov=False, got kl_clip=0.001, momentum=0.9"),
    ({**_OWN_STEP, "kl_clip": 0.1}, "it needs kl_clip=None, momentum=0 and nesterov=False, got kl_clip=0.1"),
    ({**_OWN_STEP, "nesterov": True}, "it needs kl_clip=None, momentum=0 and nesterov=False, got nesterov=True"),
    (
        {**_OWN_STEP, "decoupled_weight_decay": True},
        "models the objective, weight decay inside: it needs decoupled_weight_decay=False, got True",
    ),
    ({**_OWN_STEP, "damping_every": 0}, "damping_every must be a whole number of at least 1, got 0"),
    ({**_OWN_STEP, "gamma_every": 0}, "gamma_every must be a whole number of at least 1, got 0"),
    (
        {**_OWN_STEP, "adaptive_gamma": True, "damping_method": "exact"},
        "adaptive_gamma needs damping_method='factored', got 'exact'",
    ),
    *INVALID,
)

ENTRIES = (
    OptimizerEntry(
        name="kfac_adaptive",
        cls=KFAC,
        summary="K-FAC that sets its own step length, momentum and damping, and evaluates averaged parameters",
        paper="Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015",
        space=Space(
            {
                "damping": Float(low=1e-3, high=1e3, log=True),
                "averaging": Float(low=0.0, high=0.99, log=True, complement=True),
                "batch_size": Int(low=32, high=1024, log=True),
            },
            {**_ADAPTIVE, "statistics_every": 1, "inverses_every": 20, "warmup_updates": 3},
        ),
        second_order=True,
        floor=kfac_floor,
        example={**_ADAPTIVE, "damping": 1.0, "statistics_every": 1, "inverses_every": 5},
        invalid=_INVALID_ADAPTIVE,
        deterministic={"fisher": "exact"},
        readings=("alpha", "gamma"),
    ),
)
