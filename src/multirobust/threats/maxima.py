"""What a linear loss can gain within a ball and the pixel box, exactly.

With g the gradient of an image and room how far each pixel may follow it (1 - x where g > 0, else
x), the greatest <g, delta> is

    linf    sum |g| min(r, room)
    l2      sum |g| min(t |g|, room), with t such that the l2 norm is r, or sum |g| room
    l1      the pixels of largest |g| filled one after the other until r is spent

The second is where the exact projection of a point far along the gradient lies; the last is a
fractional knapsack.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multirobust.errors import lookup_error
from multirobust.threats.base import Threat
from multirobust.threats.projection import project_l2, work_dtype
from multirobust.types import Images, PerImage

__all__ = ["linear_gain"]

_FAR = 1e12
"""Where the steepest pixel of a far point lies: one a million times flatter follows to its end."""


@torch.no_grad()
def linear_gain(threat: Threat, gradient: Images, x: Images) -> PerImage:
    """Return the greatest first-order gain of each image within its ball and [0, 1], (b,).

    Does not wait for the device.

    Args:
        threat: A ball in linf, l2 or l1.
        gradient: Of a loss by the image, (b, c, h, w), finite.
        x: Clean images in [0, 1] of the same shape.

    Raises:
        InputError: If the threat is of another norm.

    >>> from multirobust.threats import L1
    >>> x, g = torch.tensor([[[[0.5, 0.9]]]]), torch.tensor([[[[1.0, 3.0]]]])
    >>> round(linear_gain(L1(0.3), g, x).item(), 6)  # 0.1 of the second pixel, 0.2 of the first
    0.5
    """
    if threat.norm not in _GAINS:
        raise lookup_error("norm of the threat of a linear gain", threat.norm, _GAINS)
    dtype = work_dtype(gradient, x)
    return _GAINS[threat.norm](gradient.to(dtype), x.to(dtype), threat.radius)


def _linf(gradient: Tensor, x: Tensor, radius: float) -> Tensor:
    slope, room = _rows(gradient, x)
    return (slope * room.clamp(max=radius)).sum(1)


def _l2(gradient: Tensor, x: Tensor, radius: float) -> Tensor:
    peak = gradient.abs().flatten(1).amax(1)[:, None, None, None]
    far = x + gradient * (_FAR / torch.where(peak > 0, peak, 1))
    return (gradient * (project_l2(far, x, radius) - x)).flatten(1).sum(1)


def _l1(gradient: Tensor, x: Tensor, radius: float) -> Tensor:
    slope, room = _rows(gradient, x)
    slope, order = slope.sort(dim=1, descending=True)
    room = room.gather(1, order)
    left = radius - (room.cumsum(1) - room)
    return (slope * torch.minimum(left.clamp(min=0), room)).sum(1)


def _rows(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slope and the room of each pixel, (b, n)."""
    room = torch.where(gradient > 0, 1 - x, x)
    return gradient.abs().flatten(1), room.flatten(1)


_GAINS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "linf": _linf,
    "l2": _l2,
    "l1": _l1,
}
