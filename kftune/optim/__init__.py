"""Optimizers, first- and second-order, behind one interface; usable without the rest of kftune.

Conventions of every docstring in this package, for a layer ``s = W a + b`` and a loss that is the **mean** over N
examples of ℓ_n:

* ``W`` is d_o × d_i; ``ā = [a; 1]`` (d_i + 1 entries with a bias, d_i without); ``V = [∂L/∂W, ∂L/∂b]`` is d_o × d_A.
* ``g_n = ∂ℓ_n/∂s_n`` is the gradient of the *unreduced* loss of one example.
* ``A = (1/N) Σ ā āᵀ`` (d_A × d_A), ``G = (1/N) Σ g gᵀ`` (d_G × d_G), ``V = (1/N) Σ g āᵀ``.
* The curvature block of [W b] is ``A ⊗ G`` for column-stacking vec.
* ``gaussian`` means ``mse_loss(reduction="mean")``: per-example output Hessian ``(2/O)·I`` over O outputs.
"""

from kftune._registry import Registry
from kftune.optim._base import ModelOptimizer, OptimizerEntry, PhaseTimer
from kftune.optim._target import TargetEntry, optimizer_from
from kftune.optim._torch import TorchOptimizer
from kftune.optim.adamw import AdamW
from kftune.optim.cg_fac import CGFAC
from kftune.optim.ekfac import EKFAC
from kftune.optim.foof import FOOF
from kftune.optim.kfac import KFAC
from kftune.optim.kfac_thesis import ThesisKFAC
from kftune.optim.kfac_tridiagonal import BlockTridiagonalKFAC
from kftune.optim.muon import Muon
from kftune.optim.natural_gradient import NaturalGradient
from kftune.optim.sgd import SGD
from kftune.optim.shampoo import Shampoo
from kftune.optim.skfac import SKFAC
from kftune.optim.soap import SOAP
from kftune.optim.two_level_kfac import TwoLevelKFAC

OPTIMIZERS: Registry[OptimizerEntry] = Registry(
    "optimizer", "kftune.optim", "kftune.optimizers", from_target=optimizer_from
)
"""Every optimizer, by its name in a study file."""

__all__ = [
    "CGFAC",
    "EKFAC",
    "FOOF",
    "KFAC",
    "OPTIMIZERS",
    "SGD",
    "SKFAC",
    "SOAP",
    "AdamW",
    "BlockTridiagonalKFAC",
    "ModelOptimizer",
    "Muon",
    "NaturalGradient",
    "OptimizerEntry",
    "PhaseTimer",
    "Shampoo",
    "TargetEntry",
    "ThesisKFAC",
    "TorchOptimizer",
    "TwoLevelKFAC",
]
