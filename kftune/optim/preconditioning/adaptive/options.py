"""The options of the adaptive method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from kftune.optim.checks import check_choice, check_count

Rescale: TypeAlias = Literal["none", "alpha", "alpha_and_momentum"]
RESCALES: tuple[str, ...] = get_args(Rescale)


@dataclass(frozen=True, kw_only=True)
class AdaptiveOptions:
    """The options of :class:`~kftune.optim.methods.kfac.KFAC` of the same names.

    Attributes:
        gamma_at_multiples: whether γ is due in updates whose number is a multiple of ``gamma_every``, instead of so
            many after the last one in which it was.
    """

    rescale: Rescale
    adaptive_damping: bool
    damping_every: int
    damped_reduction: bool
    adaptive_gamma: bool
    gamma_every: int
    gamma_at_multiples: bool = False

    def check(
        self, fixed_step: Mapping[str, object], damping_method: str, *, decoupled_weight_decay: bool = False
    ) -> None:
        """Refuse what contradicts itself or would have no effect.

        Args:
            fixed_step: the options that otherwise set the length of an update; None, 0 or False where not in use.
            damping_method: how the factors are damped.
            decoupled_weight_decay: whether weight decay is no part of the objective.

        Raises:
            ValueError: it names the options.
        """
        check_choice("rescale", self.rescale, RESCALES)
        check_count("damping_every", self.damping_every)
        check_count("gamma_every", self.gamma_every)
        if self.rescale == "none":
            for name in ("adaptive_damping", "adaptive_gamma"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} needs rescale='alpha' or 'alpha_and_momentum', got 'none': "
                        "without it there is no quadratic model to go by"
                    )
        elif any(fixed_step.values()):
            found = ", ".join(f"{name}={value!r}" for name, value in fixed_step.items() if value)
            raise ValueError(
                f"rescale={self.rescale!r} makes the quadratic model set the length of an update; "
                f"it needs kl_clip=None, momentum=0 and nesterov=False, got {found}"
            )
        elif decoupled_weight_decay:
            raise ValueError(
                f"rescale={self.rescale!r} models the objective, weight decay inside: "
                "it needs decoupled_weight_decay=False, got True"
            )
        if self.adaptive_gamma and damping_method != "factored":
            raise ValueError(f"adaptive_gamma needs damping_method='factored', got {damping_method!r}")
