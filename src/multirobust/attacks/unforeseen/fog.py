"""Fog: adversarial diamond-square noise over the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from multirobust.attacks.parametric import Parameters
from multirobust.attacks.unforeseen.base import STEP_LENGTH, Unforeseen, uniform
from multirobust.types import Images

__all__ = ["Fog"]

_DECAY = 2.0
"""By how much the noise of each level is weaker than that of the level before."""


@final
@dataclass(frozen=True, kw_only=True)
class Fog(Unforeseen):
    """Fog drawn by the diamond-square algorithm, whose random numbers are the parameters.

    Fog f of [0, 1] makes (x + radius f) / (peak + radius) of a pixel, where peak is the brightest
    pixel of its channel. So fog brightens, and what it leaves of the contrast is 1 / (peak +
    radius): at the greatest published radius 3 %.

    The published code differs in two points that we take for slips: there, a diamond averages one
    neighbor of the right distance and one two cells away (the later code of its authors has the
    neighbor), and the fog is scaled to [0, 1] over the batch instead of over each image.

    Args:
        radius: Thickness of the fog, on the [0, 1] pixel scale; it may exceed 1.
        steps: Number of steps, at least 1.
        objective: The loss to raise.

    References: Kang et al., 2019. The radii are calibrated for ImageNet-100 (224 x 224); there are
    none for CIFAR-10.
    """

    name: ClassVar[str] = "fog"
    severities: ClassVar[tuple[float, ...]] = tuple(
        pixels / 255 for pixels in (128, 256, 512, 2048, 4096, 8192)
    )

    @property
    def step_size(self) -> float:
        """On the scale [0, 1] of the random numbers."""
        return STEP_LENGTH / math.sqrt(self.steps)

    def start(self, x: Images, generator: torch.Generator) -> Parameters:
        """Return the random numbers of every level, uniform in [0, 1]: (b, 3, 2^i, 2^i).

        The map is the power of two above the longer side; its middle is used.
        """
        levels = max(x.shape[2:]).bit_length()
        sizes = {f"level_{i}": (3, 2**i, 2**i) for i in range(levels)}
        return {name: uniform(x, shape, generator) for name, shape in sizes.items()}

    def render(self, x: Images, parameters: Parameters) -> Images:
        """Return the images in fog."""
        h, w = x.shape[2:]
        fog = _diamond_square([parameters[f"level_{i}"] for i in range(len(parameters))])
        top, left = (fog.shape[2] - h) // 2, (fog.shape[3] - w) // 2
        fog = fog[:, :, top : top + h, left : left + w]
        peak = x.amax((2, 3), keepdim=True)
        return ((x + self.radius * fog) / (peak + self.radius)).clamp(0, 1)

    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Return the random numbers after a step by the sign of the gradient, within [0, 1]."""
        return {
            name: (level + self.step_size * gradients[name].sign()).clamp(0, 1)
            for name, level in parameters.items()
        }


def _diamond_square(levels: list[Tensor]) -> Tensor:
    """Return noise (b, 1, n, n) in [0, 1] that wraps around, n = 2 ** len(levels).

    Each level doubles the map: a new point is the mean of its four neighbors plus a random number,
    first at the center of each square, then on its edges.

    Args:
        levels: Random numbers in [0, 1], coarsest first, (b, 3, 2^i, 2^i): of the centers, the
            horizontal and the vertical edges.
    """
    corner = torch.zeros_like(levels[0][:, 0])
    scale = 1.0
    for level in levels:
        center, across, down = ((2 * level - 1) * scale).unbind(1)
        below = corner.roll(-1, 1)
        right = corner.roll(-1, 2)
        center = center + (corner + below + right + below.roll(-1, 2)) / 4
        across = across + (corner + right + center + center.roll(1, 1)) / 4
        down = down + (corner + below + center + center.roll(1, 2)) / 4
        corner = F.pixel_shuffle(torch.stack([corner, across, down, center], dim=1), 2)[:, 0]
        scale /= _DECAY
    low, high = corner.amin((1, 2), keepdim=True), corner.amax((1, 2), keepdim=True)
    span = high - low
    return ((corner - low) / torch.where(span > 0, span, 1))[:, None]
