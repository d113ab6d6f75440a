"""What a threat is: the set of images an attacker may show instead of `x`."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from multirobust.errors import InputError
from multirobust.types import Images, PerImage

__all__ = ["Threat"]


@dataclass(frozen=True)
class Threat(abc.ABC):
    """A ball of the given radius around each image, within the pixel box [0, 1].

    Args:
        radius: Size of the ball on the [0, 1] pixel scale (8 / 255, not 8).

    Raises:
        InputError: If the radius is not a positive finite number.
    """

    norm: ClassVar[str]
    """Short name of the norm: "linf", "l2" or "l1"."""

    radius: float

    def __post_init__(self) -> None:
        number = isinstance(self.radius, (int, float)) and math.isfinite(self.radius)
        if not number or self.radius <= 0:
            raise InputError(
                f"{type(self).__name__}: radius must be a positive finite number on the [0, 1] "
                f"pixel scale, got {self.radius!r}; write 8 / 255 rather than 8, and drop the "
                "threat rather than set 0."
            )
        object.__setattr__(self, "radius", float(self.radius))  # L2(1) is written as L2(1.0)

    @abc.abstractmethod
    def distance(self, x_adv: Images, x: Images) -> PerImage:
        """Return the norm of `x_adv - x` of each image, at least in float32. Shape (b,)."""

    @abc.abstractmethod
    def project(self, x_adv: Images, x: Images) -> Images:
        """Return the closest point, in Euclidean distance, of the ball around x within [0, 1]."""

    @abc.abstractmethod
    def ascent_direction(self, gradient: Images, x_adv: Images) -> Images:
        """Return the step of unit norm that gains most to first order, zero for no gradient."""

    @abc.abstractmethod
    def sample(self, x: Images, generator: torch.Generator | None = None) -> Images:
        """Return a point drawn uniformly from the ball around each image, clipped to [0, 1].

        Without a generator, one with seed 0 on the device of x is used: no global state is read.
        """
