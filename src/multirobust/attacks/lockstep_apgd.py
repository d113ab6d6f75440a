"""Auto-PGD for training: a fixed number of steps for every image, and the strongest iterate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import nn

from multirobust.attacks.apgd import remember
from multirobust.attacks.apgd_rules import RULES, Rule, Sparse, choose
from multirobust.attacks.base import Attack, attacking, check_batch, input_gradient
from multirobust.attacks.engine import State
from multirobust.attacks.objectives import CrossEntropy, Objective
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Threat
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels, PerImage

__all__ = ["LockstepAPGD"]


@final
@dataclass(frozen=True, kw_only=True)
class LockstepAPGD(Attack):
    """Auto-PGD whose images take all steps together, from the clean image, without random numbers.

    `APGD` lets an image go at its first misclassified iterate, which is what an evaluation needs; a
    defense needs the iterate of greatest loss, which this one returns. Steps and step sizes follow
    the same rules; checkpoints are counted in whole steps, rounded down, as the published training
    does. Costs one forward-backward pass a step and one more forward pass.

    Args:
        threat: The ball, in linf, l2 or l1. The density of `L1` is not used.
        steps: Number of steps, at least 1; published: 10.
        objective: The loss to raise.
        density: Of an l1 threat: share of the pixels that the first step moves; published: 0.05.

    Raises:
        InputError: If a number is out of range or the threat is of another norm.

    References: Croce and Hein, Adversarial robustness against multiple and single lp-threat models
    via quick fine-tuning of robust classifiers, ICML 2022.
    """

    threat: Threat
    steps: int = 10
    objective: Objective = CrossEntropy()
    density: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"LockstepAPGD: steps must be at least 1, got {self.steps!r}.")
        if not 0 < self.density <= 1:
            raise InputError(
                f"LockstepAPGD: density must be a share in (0, 1], got {self.density!r}."
            )
        if self.threat.norm not in RULES:
            raise lookup_error("norm of the threat of LockstepAPGD", self.threat.norm, RULES)

    @property
    def threats(self) -> tuple[Threat, ...]:
        """Its one threat."""
        return (self.threat,)

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`. Draws nothing: the generator is not used."""
        check_batch(x, y)
        x = x.detach().to(work_dtype(x))
        with attacking(model), torch.no_grad():
            loss = self.objective.bind(model, x, y)
            state = self.begin(x, y)
            for step in range(self.steps):
                gradient, logits = input_gradient(model, state["iterate"], loss)
                state = self.advance(state, gradient, loss(logits), step)
            return self.strongest(state, loss(model(state["iterate"])))

    def begin(self, x: Images, y: Labels, start: Images | None = None) -> State:
        """Return the state before the first step.

        Args:
            x: Clean images (b, c, h, w), detached, at least float32.
            y: True labels (b,).
            start: Where to start, within threat and box; None starts at x.
        """
        start = x if start is None else start
        lowest = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        state = {
            "x": x,
            "y": y,
            "iterate": start,
            "previous": start,
            "best": start,
            "best_gradient": torch.zeros_like(x),
            "best_loss": lowest,
            "loss": lowest,
            "steps": torch.zeros_like(y),
            "checkpoint": torch.zeros_like(y),
        }
        return state | self._rule().begin(start, state, self.threat)

    def advance(self, state: State, gradient: Images, loss: PerImage, step: int) -> State:
        """Return the state after a step; does not wait for the device.

        Args:
            state: Its "iterate" is what the model was asked about.
            gradient: Of the loss by the iterate.
            loss: Of the iterate, (b,).
            step: Steps before this one.
        """
        rule = self._rule()
        state = remember(state, gradient.nan_to_num(nan=0.0), loss)
        due = torch.full_like(state["rose"], step in self.checkpoints())
        state = rule.review(state, due, self.threat)
        moved = rule.step(state, self.threat)
        return state | {
            "previous": state["iterate"],
            "iterate": moved,
            "steps": state["steps"] + 1,
        }

    def strongest(self, state: State, last: PerImage) -> Images:
        """Return of all iterates those of greatest loss, given the losses of the last ones (b,)."""
        last = last.nan_to_num(nan=-torch.inf)
        return choose(last > state["best_loss"], state["iterate"], state["best"])

    def checkpoints(self) -> frozenset[int]:
        """Return after how many steps the step sizes are reviewed.

        >>> from multirobust.threats import Linf
        >>> sorted(LockstepAPGD(threat=Linf(0.1), steps=10).checkpoints())
        [2, 3, 4, 5, 6, 7, 8, 9]
        """
        first, shorter, least = (max(share * self.steps // 100, 1) for share in (22, 3, 6))
        if self.threat.norm == "l1":
            first = least = max(4 * self.steps // 100, 1)
        reviewed, interval = [first], first
        while reviewed[-1] < self.steps:
            interval = max(interval - shorter, least)
            reviewed.append(reviewed[-1] + interval)
        return frozenset(step for step in reviewed if step < self.steps)

    def _rule(self) -> Rule:
        rule = RULES[self.threat.norm]
        return replace(rule, density=self.density) if isinstance(rule, Sparse) else rule
