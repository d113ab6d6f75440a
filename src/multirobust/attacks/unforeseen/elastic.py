"""Elastic: every pixel is taken from a place nearby, by a smoothed flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from multirobust.attacks.parametric import Parameters
from multirobust.attacks.unforeseen.base import Unforeseen, uniform
from multirobust.types import Images

__all__ = ["Elastic"]

_SMOOTHING = 3 / 224
"""Standard deviation of the Gaussian, as a share of the shorter side."""


@final
@dataclass(frozen=True, kw_only=True)
class Elastic(Unforeseen):
    """Elastic deformation: a flow bounded in linf, smoothed by a Gaussian, and bilinear sampling.

    The Gaussian is 3 / 224 of the shorter side wide, as in the published code: 0.43 pixels on
    CIFAR-10, so there the flow is hardly smooth. What the flow takes from outside is black.

    Args:
        radius: Largest displacement of a pixel along each axis, in pixels.
        steps: Number of steps, at least 1.
        objective: The loss to raise.

    References: Kang et al., 2019, with the radii calibrated for CIFAR-10 (32 x 32).
    """

    name: ClassVar[str] = "elastic"
    severities: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0, 2.0, 8.0)

    @property
    def step_size(self) -> float:
        """In pixels."""
        return self.radius / math.sqrt(self.steps)

    def start(self, x: Images, generator: torch.Generator) -> Parameters:
        """Return a flow (b, 2, h, w), uniform within the radius: first to the right, then down."""
        return {"flow": (2 * uniform(x, (2, *x.shape[2:]), generator) - 1) * self.radius}

    def render(self, x: Images, parameters: Parameters) -> Images:
        """Return the images sampled along the smoothed flow."""
        h, w = x.shape[2:]
        std = _SMOOTHING * min(h, w)
        flow = parameters["flow"]
        flow = _smoothing(h, std, flow) @ flow @ _smoothing(w, std, flow).T
        across = _normalized(torch.arange(w).to(flow) + flow[:, 0], w)
        down = _normalized(torch.arange(h).to(flow)[:, None] + flow[:, 1], h)
        grid = torch.stack([across, down], dim=-1)
        return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)

    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Return the flow after a step by the sign of the gradient."""
        flow = parameters["flow"] + self.step_size * gradients["flow"].sign()
        return {"flow": flow.clamp(-self.radius, self.radius)}


def _normalized(pixel: Tensor, side: int) -> Tensor:
    """Return the coordinate in which -1 and 1 are the outer edges of the image."""
    return (2 * pixel + 1) / side - 1


def _smoothing(side: int, std: float, like: Tensor) -> Tensor:
    """Return the matrix (side, side) that blurs by a Gaussian, cut at four standard deviations.

    Beyond the edge the signal is reflected. A matrix rather than a padded convolution: its backward
    pass is the same bits on every device.
    """
    reach = math.ceil(4 * std)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(offsets.double() / std).square() / 2)
    period = max(2 * (side - 1), 1)
    source = (torch.arange(side)[:, None] + offsets) % period
    source = torch.minimum(source, period - source) if side > 1 else source * 0
    matrix = (F.one_hot(source, side) * (weights / weights.sum())[:, None]).sum(1)
    return matrix.to(like)
