"""StAdv: every pixel is drawn from a place nearby; and what it shares with other bounded fields."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from multirobust.attacks.objectives import Margin, Objective
from multirobust.attacks.parametric import Parameters, ParametricAttack
from multirobust.errors import InputError
from multirobust.ranks import drawn
from multirobust.types import Images

__all__ = ["FieldAttack", "StAdv", "roughness_gradient"]

_MEMORY, _SQUARE_MEMORY, _FLOOR = 0.9, 0.9, 1e-8
"""Adam's constants. The second moment is as short as the first, for the smoothness fades."""

_CORNER = 1e-8
"""Rounds the corner of the norm at zero: added to squared differences, in squared radii."""


@dataclass(frozen=True, kw_only=True)
class FieldAttack(ParametricAttack, abc.ABC):
    """A field of vectors, each component within the radius, raised by Adam and kept smooth.

    The field is held in units of the radius, so that its components lie in [-1, 1]. Each step
    raises the objective minus `smoothness` times the roughness (see `roughness_gradient`). That
    weight fades, linearly, to nothing at half of the steps: the radius alone bounds the threat, and
    the smoothness only leads to better maxima. At a constant weight it also protects images whose
    logits are small. The iterate of greatest margin is returned, whatever its roughness.

    Args:
        radius: Largest component, in the attack's own unit.
        steps: Number of steps, at least 1.
        step_size: Adam's learning rate, in radii.
        smoothness: First weight of the roughness, from 0.
        random_start: Start at a uniform field instead of zero.
        objective: The loss to raise.
    """

    step_size: float
    smoothness: float
    random_start: bool = False
    objective: Objective = Margin()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step_size <= 1:
            raise InputError(
                f"{type(self).__name__}: step_size must be a share of the radius in (0, 1], got "
                f"{self.step_size!r}."
            )
        if not 0 <= self.smoothness < math.inf:
            raise InputError(
                f"{type(self).__name__}: smoothness must be a finite number from 0, got "
                f"{self.smoothness!r}."
            )

    @abc.abstractmethod
    def shape(self, x: Images) -> tuple[int, ...]:
        """Return the shape of an image's field: its components first, then its axes."""

    def start(self, x: Images, generator: torch.Generator) -> Parameters:
        """See `ParametricAttack.start`. Besides the field, Adam's two moments."""
        zero = x.new_zeros((len(x), *self.shape(x)))
        field = zero
        if self.random_start:
            options = {"dtype": x.dtype, "device": x.device}
            uniform = drawn(torch.rand, zero.shape, generator=generator, **options)
            field = uniform * 2 - 1
        return {"field": field, "mean": zero, "square": zero}

    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """See `ParametricAttack.ascend`."""
        field = parameters["field"].detach()
        gradient = gradients["field"]
        smoothness = self.smoothness * (1 - 2 * step / self.steps)
        if smoothness > 0:
            gradient = gradient - smoothness * roughness_gradient(field)
        mean = torch.lerp(gradient, parameters["mean"].detach(), _MEMORY)
        square = torch.lerp(gradient**2, parameters["square"].detach(), _SQUARE_MEMORY)
        size = self.step_size / (1 - _MEMORY ** (step + 1))
        spread = (square / (1 - _SQUARE_MEMORY ** (step + 1))).sqrt() + _FLOOR
        field = (field + size * mean / spread).clamp(-1, 1)
        return {"field": field, "mean": mean, "square": square}


def roughness_gradient(field: Tensor) -> Tensor:
    """Return the gradient of a field's roughness, in closed form; 0 where it is constant.

    The roughness is the sum, over all points and all their neighbors along the axes, of the
    Euclidean distance between the two vectors; so each pair counts twice.

    Args:
        field: Shape (b, components, *axes).
    """
    total = torch.zeros_like(field)
    for axis in range(2, field.dim()):
        step = field.diff(dim=axis)
        pull = step * (2 / (step.square().sum(dim=1, keepdim=True) + _CORNER).sqrt())
        count = pull.shape[axis]
        total.narrow(axis, 1, count).add_(pull)
        total.narrow(axis, 0, count).sub_(pull)
    return total


@final
@dataclass(frozen=True, kw_only=True)
class StAdv(FieldAttack):
    """Spatially transformed adversarial images: a flow field says where each pixel comes from.

    A displacement is a share of half the side, along each axis alone: at radius 0.05, an image of
    side 32 has flows of up to 0.8 pixels to the left, right, up and down. Beyond the border lies
    the outermost pixel. As in the public implementations the flow is bounded, and rough flows cost
    (the original paper has the cost alone).

    Args:
        radius: Largest displacement along an axis, in half sides; below 1.
        steps: Number of steps, at least 1.
        step_size: Adam's learning rate, in radii; 0.2 as published.
        smoothness: First weight of the roughness of the flow in radii, from 0; published is a
            constant 0.0025, which is weaker.
        random_start: Start at a uniform flow instead of none.
        objective: The loss to raise; published is the margin.

    References: Xiao, Zhu, Li, He, Liu and Song, Spatially transformed adversarial examples, ICLR
    2018; bound and settings of Laidlaw, Singla and Feizi, Perceptual adversarial robustness, ICLR
    2021.
    """

    name: ClassVar[str] = "stadv"
    severities: ClassVar[tuple[float, ...]] = tuple(round(0.005 * i, 3) for i in range(1, 21))
    """Radii 0.005, 0.01, ..., 0.1 of MultiRobustBench (Dai et al., ICML 2023) on CIFAR-10. The one
    that papers report most is level 10: 0.05."""

    step_size: float = 0.2
    smoothness: float = 0.0005

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius >= 1:
            raise InputError(
                "StAdv: radius must be a share of half the side, below 1, got "
                f"{self.radius!r}; the published one is 0.05."
            )

    def shape(self, x: Images) -> tuple[int, ...]:
        """See `FieldAttack.shape`: to the right and down."""
        return (2, x.shape[2], x.shape[3])

    def render(self, x: Images, parameters: Parameters) -> Images:
        """See `ParametricAttack.render`."""
        flow = self.radius * parameters["field"].movedim(1, -1)
        identity = torch.eye(2, 3, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        positions = F.affine_grid(identity, list(x.shape), align_corners=False) + flow
        drawn = F.grid_sample(x, positions, padding_mode="border", align_corners=False)
        return drawn.clamp(0, 1)
