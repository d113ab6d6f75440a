"""What a robustness curve attacks with at each radius, and how near its results are brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from multirobust.attacks import APGD, Attack, TargetedDLR, attacking
from multirobust.errors import InputError
from multirobust.threats import Threat, Transformation
from multirobust.types import Images, Labels

__all__ = ["CurveAttacks", "Shortened"]

LEAST = 6
"""Iterations that leave each phase of a wide attack in l1 some steps."""


@final
@dataclass(frozen=True, kw_only=True)
class CurveAttacks:
    """APGD with cross-entropy, then targeted APGD on what it leaves; both results `Shortened`.

    Args:
        iterations: Forward-backward passes of each run, at least 6.
        targets: Wrong classes that the targeted attack goes for, those of greatest logit; 0 leaves
            it out.
        halvings: Of the way back to the clean image; see `Shortened`.
    """

    iterations: int = 50
    targets: int = 3
    halvings: int = 6

    def __post_init__(self) -> None:
        for name, least in (("iterations", LEAST), ("targets", 0), ("halvings", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"CurveAttacks: {name} must be a whole number, {least} or more, got {value!r}."
                )

    def __call__(self, threat: Threat) -> dict[str, Attack]:
        """Return the attacks within a ball by their names, in the order they are run."""
        steps = {"threat": threat, "iterations": self.iterations, "wide": threat.norm == "l1"}
        attacks: dict[str, Attack] = {"apgd_ce": APGD(**steps)}
        if self.targets:
            attacks["apgd_t"] = APGD(**steps, objective=TargetedDLR(), targets=self.targets)
        return {name: Shortened(attack, self.halvings) for name, attack in attacks.items()}


@final
@dataclass(frozen=True)
class Shortened(Attack):
    """An attack whose adversarial images are moved toward the clean ones while they fool the model.

    An attack that raises a loss ends at the rim of its ball, however near the boundary is. A
    bisection of the line to the clean image brings the result to within 1 / 2^halvings of that
    line's length from a place where the model is right, at one forward pass a halving.

    Args:
        attack: The attack, of norm threats.
        halvings: Steps of the bisection, 0 or more.
    """

    attack: Attack
    halvings: int = 6

    def __post_init__(self) -> None:
        if self.halvings < 0:
            raise InputError(f"Shortened: halvings must be 0 or more, got {self.halvings!r}.")

    @property
    def threats(self) -> tuple[Threat | Transformation, ...]:
        """The threats of its attack."""
        return self.attack.threats

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`."""
        return self.run(model, x, y, batch_size=len(x), generator=generator)

    def run(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.run`."""
        found = self.attack.run(model, x, y, batch_size=batch_size, generator=generator)
        if not self.halvings:
            return found
        found = found.clone()
        moved = (found != x).flatten(1).any(1).nonzero().squeeze(1)
        with attacking(model), torch.no_grad():
            for rows in moved.split(batch_size):
                found[rows] = _shorter(
                    model, x[rows].to(found), y[rows], found[rows], self.halvings
                )
        return found


def _shorter(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, halvings: int) -> Tensor:
    """Return the nearest point of each line that the bisection finds to fool the model."""
    fooled = _fooled(model(x_adv), y)
    right, wrong = torch.zeros_like(x_adv[:, :1, :1, :1]), torch.ones_like(x_adv[:, :1, :1, :1])
    nearest = x_adv
    for _ in range(halvings):
        middle = (right + wrong) / 2
        point = (x + middle * (x_adv - x)).clamp(0, 1)
        nearer = (fooled & _fooled(model(point), y))[:, None, None, None]
        right, wrong = torch.where(nearer, right, middle), torch.where(nearer, middle, wrong)
        nearest = torch.where(nearer, point, nearest)
    return nearest


def _fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Return which predictions are wrong, (b,) bool; not one with a NaN, which is an error."""
    return (logits.argmax(1) != y) & ~logits.isnan().any(1)
