"""Attacks that move the parameters of a differentiable transformation, not pixels."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack, attacking, check_batch
from multirobust.attacks.objectives import CrossEntropy, Margin, Objective
from multirobust.errors import InputError
from multirobust.threats import Transformation
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels

__all__ = ["Parameters", "ParametricAttack"]

Parameters: TypeAlias = dict[str, Tensor]
"""What a transformation is made of: tensors whose first dimension is the image."""


@dataclass(frozen=True, kw_only=True)
class ParametricAttack(Attack, abc.ABC):
    """Gradient ascent on the parameters of a transformation of each image.

    Of all iterates, the first of greatest margin of a wrong class is returned, so that an image
    that fools the model is never lost. Costs one forward-backward pass a step and one more forward
    pass at the end.

    Args:
        radius: Largest strength, in the transformation's own unit.
        steps: Number of steps, at least 1.
        objective: The loss to raise.
    """

    name: ClassVar[str]
    """Of the transformation."""

    radius: float
    steps: int
    objective: Objective = CrossEntropy()

    def __post_init__(self) -> None:
        Transformation(self.name, self.radius)
        if self.steps < 1:
            raise InputError(
                f"{type(self).__name__}: steps must be at least 1, got {self.steps!r}."
            )

    @property
    def threats(self) -> tuple[Transformation, ...]:
        """Its one transformation."""
        return (Transformation(self.name, self.radius),)

    @abc.abstractmethod
    def start(self, x: Images, generator: torch.Generator) -> Parameters:
        """Return the parameters that the ascent starts from, within the radius."""

    @abc.abstractmethod
    def render(self, x: Images, parameters: Parameters) -> Images:
        """Return the transformed images, within [0, 1], differentiable by the parameters."""

    @abc.abstractmethod
    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Return the parameters after a step, within the radius.

        Args:
            parameters: Those the gradients were taken at.
            gradients: Of the loss, one for each parameter, finite; zero where it has none.
            step: 0 for the first.
        """

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
        x = x.detach().to(work_dtype(x))
        generator = generator or torch.Generator(x.device).manual_seed(0)
        parameters = self.start(x, generator)
        best, best_margin = x, torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        with attacking(model):
            loss = self.objective.bind(model, x, y)
            margin = Margin().bind(model, x, y)
            for step in range(self.steps + 1):
                last = step == self.steps
                with torch.set_grad_enabled(not last):
                    leaves = {n: p.detach().requires_grad_() for n, p in parameters.items()}
                    x_adv = self.render(x, leaves)
                    logits = model(x_adv)
                found = margin(logits.detach())
                better = found > best_margin
                best = torch.where(better[:, None, None, None], x_adv.detach(), best)
                best_margin = torch.where(better, found, best_margin)
                if not last:
                    with torch.enable_grad():
                        total = loss(logits).sum()
                    gradients = _gradients(total, leaves)
                    parameters = self.ascend(parameters, gradients, step)
        return best


def _gradients(total: Tensor, leaves: Parameters) -> Parameters:
    """Return the gradient of every parameter.

    Raises:
        InputError: If no gradient leads from the logits to the images.
    """
    gradients = [None] * len(leaves)
    if total.requires_grad:
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise InputError(
            "model: its logits must depend differentiably on x, and no gradient leads back to the "
            "images; remove what detaches, rounds or disables gradients inside the model."
        )
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient.nan_to_num(nan=0.0)
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
