"""Projected gradient descent in any threat, and multi steepest descent over several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import nn

from multirobust.attacks.base import Attack, attacking, check_batch, input_gradient, strongest
from multirobust.attacks.objectives import CrossEntropy, Margin, Objective
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Threat
from multirobust.types import Images, Labels

__all__ = ["MSD", "PGD"]


def _check_schedule(name: str, steps: int, step_sizes: tuple[float, ...]) -> None:
    if steps < 1:
        raise InputError(f"{name}: steps must be at least 1, got {steps}.")
    for size in step_sizes:
        if not 0 < size < float("inf"):
            raise InputError(f"{name}: a step size must be positive and finite, got {size}.")


@final
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent (Eq. 1): steepest ascent and exact projection, in turn.

    Costs one forward-backward pass a step, and one more forward pass with keep="best".

    Args:
        threat: The ball.
        steps: Number of steps, at least 1.
        step_size: Length of a step in the threat's norm, on the [0, 1] pixel scale.
        random_start: Start at a uniform point of the ball instead of the clean image.
        objective: The loss to raise.
        keep: "last" returns the last iterate, as the paper's code; "best" the iterate of greatest
            margin of a wrong class, so that one that fools the model is never lost.

    References: Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR
    2018. In l1 with a density: Tramèr and Boneh, NeurIPS 2019 (SLIDE).
    """

    threat: Threat
    steps: int
    step_size: float
    random_start: bool = True
    objective: Objective = CrossEntropy()
    keep: Literal["last", "best"] | str = "last"

    def __post_init__(self) -> None:
        _check_schedule("PGD", self.steps, (self.step_size,))
        if self.keep not in ("last", "best"):
            raise lookup_error("keep", self.keep, ("last", "best"))

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
        """See `Attack.__call__`."""
        check_batch(x, y)
        x = x.detach()
        x_adv = self.threat.sample(x, generator) if self.random_start else x
        with attacking(model), torch.no_grad():
            loss = self.objective.bind(model, x, y)
            best = _Best(model, x, y) if self.keep == "best" else None
            for _ in range(self.steps):
                gradient, logits = input_gradient(model, x_adv, loss)
                if best:
                    best.offer(x_adv, logits)
                x_adv = self._step(x_adv, gradient, x)
            if best:
                best.offer(x_adv, model(x_adv))
                return best.x_adv
        return x_adv

    def _step(self, x_adv: Images, gradient: Images, x: Images) -> Images:
        direction = self.threat.ascent_direction(gradient, x_adv)
        return self.threat.project(x_adv + self.step_size * direction, x)


class _Best:
    """The iterate of greatest margin so far, for each image of one batch."""

    def __init__(self, model: nn.Module, x: Images, y: Labels):
        self.margin = Margin().bind(model, x, y)
        self.x_adv = x
        self.value = torch.full((len(x),), -torch.inf, device=x.device)

    def offer(self, x_adv: Images, logits: torch.Tensor) -> None:
        """Keep the images of x_adv whose margin is greater than the best so far."""
        value = self.margin(logits)
        better = value > self.value
        self.x_adv = torch.where(better[:, None, None, None], x_adv, self.x_adv)
        self.value = torch.where(better, value, self.value)


@final
@dataclass(frozen=True, kw_only=True)
class MSD(Attack):
    """Multi steepest descent: at every step, the best of one PGD step in each threat.

    Starts at the clean image and returns the last iterate. Costs one forward-backward pass and one
    forward pass for each threat, a step.

    Args:
        balls: The threats.
        step_sizes: One for each threat, in its norm, on the [0, 1] pixel scale.
        steps: Number of steps, at least 1.
        objective: The loss to raise and to choose by.

    References: Maini, Wong and Kolter, Adversarial robustness against the union of multiple
    perturbation models, ICML 2020.
    """

    balls: tuple[Threat, ...]
    step_sizes: tuple[float, ...]
    steps: int = 20
    objective: Objective = CrossEntropy()

    def __post_init__(self) -> None:
        _check_schedule("MSD", self.steps, self.step_sizes)
        if not self.balls or len(self.balls) != len(self.step_sizes):
            raise InputError(
                f"MSD: needs at least one threat and one step size for each, got {len(self.balls)} "
                f"threats and {len(self.step_sizes)} step sizes."
            )

    @property
    def threats(self) -> tuple[Threat, ...]:
        """All its balls: the last step of an image was projected onto one of them."""
        return self.balls

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
        x = x_adv = x.detach()
        with attacking(model), torch.no_grad():
            loss = self.objective.bind(model, x, y)
            for _ in range(self.steps):
                gradient, _ = input_gradient(model, x_adv, loss)
                steps = (
                    ball.project(x_adv + size * ball.ascent_direction(gradient, x_adv), x)
                    for ball, size in zip(self.balls, self.step_sizes, strict=True)
                )
                x_adv = strongest(model, steps, loss)
        return x_adv
