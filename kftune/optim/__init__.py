"""Optimizers, first- and second-order, behind one interface; usable without the rest of kftune.

Rooms, each of which imports only from those below it:

* ``methods``: the optimizers, one file each;
* ``preconditioning`` (K-FAC's family), ``matrixwise`` (Shampoo's), ``own`` (anyone's optimizer behind the interface);
* ``entry``: what the registry knows of an optimizer; ``costs``: what its step costs at least;
* ``curvature``: what a layer saw, and whose labels it was for;
* ``interface``: what every optimizer is; ``distributed``: several processes;
* ``saving``: what is saved and loaded;
* ``updates`` (momentum, Adam, averages), ``linalg`` (functions of matrices), ``checks`` (of
  hyperparameters), ``states`` (whether they fit), ``closures`` (what they return).

Conventions of every docstring in this package, for a layer ``s = W a + b`` and a loss that is the **mean** over N
examples of ℓ_n:

* ``W`` is d_o × d_i; ``ā = [a; 1]`` (d_i + 1 entries with a bias, d_i without); ``V = [∂L/∂W, ∂L/∂b]`` is d_o × d_A.
* ``g_n = ∂ℓ_n/∂s_n`` is the gradient of the *unreduced* loss of one example.
* ``A = (1/N) Σ ā āᵀ`` (d_A × d_A), ``G = (1/N) Σ g gᵀ`` (d_G × d_G), ``V = (1/N) Σ g āᵀ``.
* The curvature block of [W b] is ``A ⊗ G`` for column-stacking vec.
* ``gaussian`` means ``mse_loss(reduction="mean")``: per-example output Hessian ``(2/O)·I`` over O outputs.
"""

from kftune._registry import Registry
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import ModelOptimizer, PhaseTimer
from kftune.optim.methods.adamw import AdamW
from kftune.optim.methods.cg_fac import CGFAC
from kftune.optim.methods.ekfac import EKFAC
from kftune.optim.methods.foof import FOOF
from kftune.optim.methods.kfac import KFAC
from kftune.optim.methods.kfac_thesis import ThesisKFAC
from kftune.optim.methods.kfac_tridiagonal import BlockTridiagonalKFAC
from kftune.optim.methods.muon import Muon
from kftune.optim.methods.natural_gradient import NaturalGradient
from kftune.optim.methods.sgd import SGD
from kftune.optim.methods.shampoo import Shampoo
from kftune.optim.methods.skfac import SKFAC
from kftune.optim.methods.soap import SOAP
from kftune.optim.methods.two_level_kfac import TwoLevelKFAC
from kftune.optim.own.target import TargetEntry, optimizer_from
from kftune.optim.own.torch_optimizer import TorchOptimizer

OPTIMIZERS: Registry[OptimizerEntry] = Registry(
    "optimizer", "kftune.optim.methods", "kftune.optimizers", from_target=optimizer_from
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
