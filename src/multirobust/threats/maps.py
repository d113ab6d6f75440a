"""Maps from noise without bounds to images within a ball and the pixel box, with live gradients.

With noise n and an image x of N pixels, ends -x <= delta <= 1 - x, radius r:

    linf    a = max(-r, -x), b = min(r, 1 - x):   delta = (a + b) / 2 + (b - a) / 2 tanh(n - s)
    l2, l1  u = r / N^(1/p):   w = u f(clip(n)),  delta = w r / || sqrt(w^2 + u^2) ||_p

The linf map is a scaled tanh. In l2, f is the identity: the displacement w is drawn toward x along
its ray. In l1, f = sinh: without the box, delta_i = r sinh(n_i) / sum_j cosh(n_j), a softmax over
the 2 N corners of the ball. `clip` is a smooth clip to what the box leaves; since ||sqrt(w^2 +
u^2)|| >= r, nothing that follows leads out of the box again.

Noise is counted in units of the ball: in linf of r, in l2 and l1 of u, the displacement of a pixel
where all pixels share the radius. The hard projection counts it in pixel units.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from multirobust.errors import InputError, lookup_error
from multirobust.threats.balls import L1, L2, Linf
from multirobust.threats.base import Threat
from multirobust.threats.projection import add_toward, work_dtype
from multirobust.types import Images

__all__ = [
    "BALL_MAPS",
    "SMOOTH_MAPS",
    "BallMap",
    "HardProjection",
    "SmoothMap",
    "StraightThrough",
    "smooth_l1",
    "smooth_l2",
    "smooth_linf",
]

Backward: TypeAlias = Literal["identity", "smooth"]

_EXACT = 40.0
"""Beyond this, softplus(t) = t in float64 too."""


class BallMap(abc.ABC):
    """How noise without bounds becomes an image within a threat: a frozen value."""

    @abc.abstractmethod
    def __call__(self, threat: Threat, noise: Images, x: Images) -> Images:
        """Return images within the threat around x and within [0, 1].

        Args:
            threat: The same for all images.
            noise: Any finite values, shape (b, c, h, w).
            x: Clean images in [0, 1] of the same shape.

        Returns:
            Float32 images (float64 if either input is), with distance <= radius (1 + 1e-6).
        """


@final
@dataclass(frozen=True)
class HardProjection(BallMap):
    """The closest point to x + noise (Eq. 6). No gradient passes where ball or box bind."""

    def __call__(self, threat: Threat, noise: Images, x: Images) -> Images:
        """See `BallMap`."""
        return threat.project(x + noise, x)


@final
@dataclass(frozen=True)
class SmoothMap(BallMap):
    """A map with derivatives of any order, through which a gradient reaches every pixel's noise.

    A pixel at 0 or 1 still moves inward, more for noise inward, less for noise outward. Noise that
    is zero leaves an image without such pixels (all but) where it is.

    Raises:
        InputError: When called, if the threat has no row in `SMOOTH_MAPS`.
    """

    def __call__(self, threat: Threat, noise: Images, x: Images) -> Images:
        """See `BallMap`."""
        if type(threat) not in SMOOTH_MAPS:
            known = ", ".join(kind.__name__ for kind in SMOOTH_MAPS)
            raise InputError(
                f"SmoothMap: threat must be one of {known}, got {threat!r}; add a row to "
                "multirobust.threats.maps.SMOOTH_MAPS, or use HardProjection()."
            )
        return SMOOTH_MAPS[type(threat)](noise, x, threat.radius)


@final
@dataclass(frozen=True)
class StraightThrough(BallMap):
    """The hard projection, with the derivative of another map.

    Args:
        backward: "identity" pretends that x + noise was left as it is; "smooth" takes the
            derivative of `SmoothMap` at the same noise.

    Raises:
        InputError: If backward is unknown.

    References: Bengio, Leonard and Courville, Estimating or propagating gradients through
    stochastic neurons for conditional computation, arXiv 1308.3432.
    """

    backward: Backward | str = "identity"

    def __post_init__(self) -> None:
        if self.backward not in get_args(Backward):
            raise lookup_error("backward", self.backward, get_args(Backward))

    def __call__(self, threat: Threat, noise: Images, x: Images) -> Images:
        """See `BallMap`."""
        with torch.no_grad():
            value = threat.project(x + noise, x)
        formula = x + noise if self.backward == "identity" else SmoothMap()(threat, noise, x)
        return _with_derivatives_of(formula.to(value.dtype), value)


def smooth_linf(noise: Images, x: Images, radius: float) -> Images:
    """Return x + delta, delta a scaled tanh between what ball and box leave each pixel.

    Args:
        noise: Shape (b, c, h, w), in units of the radius.
        x: Images in [0, 1] of the same shape.
        radius: In pixel units.

    Returns:
        Images within radius of x in every pixel and in [0, 1].
    """
    dtype = work_dtype(noise, x)
    n, x = noise.to(dtype), x.to(dtype)
    low, high = (-x).clamp(min=-radius), (1 - x).clamp(max=radius)
    width = high - low
    t = 2 * n - 2 * (high + low) / width  # the shift is 0 where the box does not bind
    # 1 + tanh(t / 2) = 2 sigmoid(t); the side is chosen so that no derivative is 1 - 1
    delta = torch.where(t > 0, high - width * t.neg().sigmoid(), low + width * t.sigmoid())
    with torch.no_grad():
        value = add_toward(x, torch.minimum(torch.maximum(delta, low), high))
    return _with_derivatives_of(x + delta, value)


def smooth_l2(noise: Images, x: Images, radius: float) -> Images:
    """Return x + w / sqrt(1 + |w|^2 / r^2), w the noise clipped smoothly to the box.

    Args:
        noise: Shape (b, c, h, w), in units of r / sqrt(N), N = c h w.
        x: Images in [0, 1] of the same shape.
        radius: In pixel units.

    Returns:
        Images within radius of x in l2 and in [0, 1].
    """
    return _drawn_in(noise, x, radius, 2, _identity, _identity)


def smooth_l1(noise: Images, x: Images, radius: float) -> Images:
    """Return x + r sinh(n) / sum cosh(n), n the noise clipped smoothly to the box.

    Noise of one size everywhere gives a dense displacement, of many sizes a sparse one.

    Args:
        noise: Shape (b, c, h, w), in units of r / N, N = c h w.
        x: Images in [0, 1] of the same shape.
        radius: In pixel units.

    Returns:
        Images within radius of x in l1 and in [0, 1].
    """
    return _drawn_in(noise, x, radius, 1, torch.sinh, torch.asinh)


def _drawn_in(
    noise: Tensor,
    x: Tensor,
    radius: float,
    order: int,
    bend: Callable[[Tensor], Tensor],
    straighten: Callable[[Tensor], Tensor],
) -> Tensor:
    """Clip to the box, bend, and draw toward x until the norm of that order is below the radius."""
    dtype, shape = work_dtype(noise, x), x.shape
    n, x = noise.to(dtype).flatten(1), x.to(dtype).flatten(1)
    size: Any = {"ord": order, "dim": 1, "keepdim": True}
    whole = n.shape[1] ** (1 / order)
    unit = radius / whole
    w = bend(_soft_clip(n, straighten(-x / unit), straighten((1 - x) / unit)))
    length = torch.linalg.vector_norm((w.square() + 1).sqrt(), **size)
    delta = w * (radius / length)
    with torch.no_grad():
        fixed = torch.minimum(torch.maximum(delta, -x), 1 - x)
        length = torch.linalg.vector_norm(fixed, dtype=torch.float64, **size)
        fixed = fixed * torch.where(length > radius, radius / length, 1).to(dtype)
        value = add_toward(x, fixed)
    return _with_derivatives_of(x + delta, value).reshape(shape)


def _soft_clip(n: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return n where it is well between its ends, and else what tends to the nearer end.

    low + softplus(n - low) - softplus(n - high), written from the nearer end, so that neither the
    value nor the derivative is a difference of two large numbers.
    """
    below = low + _softplus(n - low) - _softplus(n - high)
    above = high - _softplus(high - n) + _softplus(low - n)
    return torch.where(2 * n > low + high, above, below)


def _softplus(t: Tensor) -> Tensor:
    return F.softplus(t, threshold=_EXACT)


def _identity(t: Tensor) -> Tensor:
    return t


def _with_derivatives_of(formula: Tensor, value: Tensor) -> Tensor:
    """Return the value, bit for bit, with the derivatives of the formula."""
    return value + (formula - formula.detach())


SMOOTH_MAPS: dict[type[Threat], Callable[[Tensor, Tensor, float], Tensor]] = {
    Linf: smooth_linf,
    L2: smooth_l2,
    L1: smooth_l1,
}
"""Kind of threat, to its smooth map of (noise, x, radius)."""

BALL_MAPS: dict[str, BallMap] = {
    "project": HardProjection(),
    "smooth": SmoothMap(),
    "straight_through": StraightThrough(),
    "straight_through_smooth": StraightThrough("smooth"),
}
"""Name in a recipe (`defense.noise_map`), to the map."""
