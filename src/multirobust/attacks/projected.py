"""An attack of any kind whose images are brought into a ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from multirobust.attacks.base import Attack
from multirobust.threats import Threat
from multirobust.types import Images, Labels

__all__ = ["Projected"]


@final
@dataclass(frozen=True)
class Projected(Attack):
    """Another attack, and then the closest point of a ball around each clean image.

    With a rotation, the step of the radius towards the rotated image. Costs what the attack costs;
    the model is not asked whether the projected image still fools it.

    Args:
        attack: The attack, in any threat or none.
        threat: The ball.

    References: Madaan et al., ICML 2021, Table 4: the spatial attack projected on the l2 norm.
    """

    attack: Attack
    threat: Threat

    @property
    def threats(self) -> tuple[Threat, ...]:
        """The ball."""
        return (self.threat,)

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`."""
        x_adv = self.attack(model, x, y, generator=generator)
        return self.threat.project(x_adv, x.detach())
