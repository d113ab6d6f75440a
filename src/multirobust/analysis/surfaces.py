"""Figures 3 and 6: the loss on a plane through an image, spanned by two steepest directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from multirobust.attacks import CrossEntropy, attacking, input_gradient
from multirobust.attacks.base import check_batch
from multirobust.errors import InputError, lookup_error
from multirobust.threats import L1, Threat
from multirobust.types import Images, Labels

__all__ = ["Surface", "loss_surface", "steepest_plane"]


@final
@dataclass(frozen=True, eq=False)
class Surface:
    """Mean loss over some images on a plane through each of them.

    Args:
        norm: Of the threat: "linf", "l2" or "l1".
        radius: Of the threat, on the [0, 1] pixel scale.
        axis: Positions along both axes, in radii of the threat, ascending, shape (p,).
        loss: Mean cross-entropy in nats, shape (p, p); the second direction runs down the rows, the
            first along the columns. x itself is in the middle.
        roughness: Mean of the absolute second differences of each image's loss along both axes,
            over the squared distance of two positions: nats per squared radius. 0 for a plane.
        images: Number of images.
        drawn: Images of which one direction or both had to be drawn at random.
    """

    norm: str
    radius: float
    axis: np.ndarray
    loss: np.ndarray
    roughness: float
    images: int
    drawn: int = 0

    @property
    def center(self) -> float:
        """Mean loss of the images themselves, in nats."""
        middle = len(self.axis) // 2
        return float(self.loss[middle, middle])

    @property
    def greatest(self) -> float:
        """Greatest mean loss on the plane, in nats."""
        return float(self.loss.max())

    @property
    def rise(self) -> float:
        """Mean loss at the end of the first direction minus that at the center, in nats."""
        return float(self.loss[len(self.axis) // 2, -1]) - self.center

    def summary(self) -> dict[str, float]:
        """Return the numbers for a table: center, rise, greatest (nats) and roughness."""
        names = ("center", "rise", "greatest", "roughness")
        return {name: getattr(self, name) for name in names}


def loss_surface(
    model: nn.Module,
    x: Images,
    y: Labels,
    threat: Threat,
    *,
    points: int = 21,
    reach: float = 1.0,
    clip: bool = False,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
) -> Surface:
    """Return the loss at x + a * d1 + b * d2 for a and b up to reach * radius either way.

    d1 and d2 are those of `steepest_plane`. Nothing is projected onto the ball, whose boundary
    meets the axes at ±1; its corners lie up to twice the radius away from x. The model is in
    evaluation mode.

    Args:
        model: Maps images (b, c, h, w) in [0, 1] to logits (b, k).
        x: Images (b, c, h, w) in [0, 1], on the device of the model.
        y: True labels (b,).
        threat: Decides what is steepest and how long the axes are.
        points: Positions on each axis; odd, so that x is one of them.
        reach: Length of the axes, in radii.
        clip: Whether pixels are kept within [0, 1]. Without, the surface shows the model on a true
            plane; with, only images that an attacker can show.
        batch_size: Images a pass.
        generator: Draws directions where there is none; without one, a fresh one with seed 0.

    Raises:
        InputError: If an argument breaks these rules, or the loss is not finite.

    References: Madaan, Shin and Hwang, ICML 2021, Figures 3 and 6.
    """
    check_batch(x, y)
    _check(points, reach, batch_size)
    half = points // 2
    axis = reach / half * torch.arange(-half, half + 1, dtype=torch.float64)
    with attacking(model, "running"):
        first, second, drawn = steepest_plane(
            model, x, y, threat, length=reach * threat.radius, generator=generator
        )

        def losses(positions: Tensor) -> Tensor:
            steps = (threat.radius * positions).to(first)
            images = x + _times(steps[:, 0], first) + _times(steps[:, 1], second)
            images = (images.clamp(0, 1) if clip else images).flatten(0, 1).to(x.dtype)
            labels = y.repeat(len(positions))
            found = CrossEntropy().of(model(images), labels, labels)
            return found.reshape(len(positions), len(x)).double().cpu()

        # Rows hold one position along d2, columns one along d1.
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).flatten(0, 1)
        with torch.no_grad():
            parts = grid.to(x.device).split(max(1, batch_size // len(x)))
            table = torch.cat([losses(part) for part in parts])
    if not bool(table.isfinite().all()):
        raise InputError("model must have finite logits on the whole plane, got NaN or infinity.")
    each = table.reshape(points, points, len(x)).numpy()
    return Surface(
        norm=threat.norm,
        radius=threat.radius,
        axis=axis.numpy(),
        loss=each.mean(axis=2),
        roughness=_curvature(each) * (half / reach) ** 2,
        images=len(x),
        drawn=drawn,
    )


def steepest_plane(
    model: nn.Module,
    x: Images,
    y: Labels,
    threat: Threat,
    *,
    length: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Return two orthogonal directions of unit norm for each image, and how many were drawn.

    The first is the threat's steepest ascent of the loss at x. The second is the steepest ascent at
    the end of the first, x + length * d1, among the directions orthogonal to it:

    - l2: the gradient there without its part along d1, that is, where the gradient turns to;
    - linf: of all v in {-1, 1}^n with v . d1 = 0 the one of greatest product with the gradient
      there: along d1 in the half of the pixels that gain most, against it in the others;
    - l1: the step shared by the steepest pixels there that d1 leaves alone.

    A step of l1 is shared among at least so many pixels that none moves by more than 1. Where an
    image has no gradient, or none is left orthogonal to d1 (l2 on a linear model), the gradient is
    replaced by Gaussian noise.

    Args:
        model: In the mode for attacks (`attacks.attacking`).
        x: Images (b, c, h, w).
        y: Labels (b,).
        threat: An l1, l2 or linf ball.
        length: Of the first axis, on the [0, 1] pixel scale.
        generator: Source of that noise; without one, a fresh one with seed 0.

    Raises:
        InputError: If the threat is of another norm.
    """
    if threat.norm not in _ACROSS:
        raise lookup_error("norm of a loss surface", threat.norm, _ACROSS)
    across, threat = _ACROSS[threat.norm], _shared(threat, x, length)
    generator = generator or torch.Generator(x.device).manual_seed(0)

    def gradient(images: Tensor) -> Tensor:
        return input_gradient(model, images, lambda z: CrossEntropy().of(z, y, y))[0]

    def or_drawn(direction: Callable[[Tensor], Tensor], steepest: Tensor) -> tuple[Tensor, Tensor]:
        found = direction(steepest)
        none = found.flatten(1).abs().amax(1) == 0
        noise = torch.randn(x.shape, generator=generator, dtype=found.dtype, device=x.device)
        return torch.where(none[:, None, None, None], direction(noise), found), none

    first, none = or_drawn(lambda g: threat.ascent_direction(g, x), gradient(x))
    turned = gradient((x + length * first).to(x.dtype)).to(first.dtype)
    second, neither = or_drawn(lambda g: across(threat, g, first, x), turned)
    return first, second, int((none | neither).sum())


def _across_l2(threat: Threat, gradient: Tensor, first: Tensor, x: Tensor) -> Tensor:
    g, d = gradient.flatten(1), first.flatten(1)
    peak = g.abs().amax(1, keepdim=True)
    g = g / torch.where(peak > 0, peak, 1)
    rest = g
    for _ in range(2):  # once leaves a rounding error along d
        rest = rest - (rest * d).sum(1, keepdim=True) * d
    length, whole = (torch.linalg.vector_norm(v, dim=1, keepdim=True) for v in (rest, g))
    rest = torch.where(length > torch.finfo(g.dtype).eps ** 0.5 * whole, rest, 0)
    return threat.ascent_direction(rest.reshape(x.shape), x)


def _across_linf(threat: Threat, gradient: Tensor, first: Tensor, x: Tensor) -> Tensor:
    g, d = gradient.flatten(1), first.flatten(1)
    used = d != 0
    gain = torch.where(used, g * d, -torch.inf)
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count = used.sum(1, keepdim=True)
    half = count // 2
    turn = (rank < half).to(d.dtype) - (rank >= count - half).to(d.dtype)
    known = (g != 0).any(1, keepdim=True)
    direction = torch.where(used, turn * d, threat.ascent_direction(gradient, x).flatten(1))
    return torch.where(known, direction, 0).reshape(x.shape)


def _across_l1(threat: Threat, gradient: Tensor, first: Tensor, x: Tensor) -> Tensor:
    return threat.ascent_direction(torch.where(first == 0, gradient, 0), x)


_ACROSS: dict[str, Callable[[Threat, Tensor, Tensor, Tensor], Tensor]] = {
    "linf": _across_linf,
    "l2": _across_l2,
    "l1": _across_l1,
}
"""Of each norm: the direction of steepest ascent along a gradient that is orthogonal to `first`."""


def _shared(threat: Threat, x: Tensor, length: float) -> Threat:
    """Return an l1 threat whose ascent moves at least `length` pixels, any other as it is."""
    if not isinstance(threat, L1):
        return threat
    return replace(threat, density=min(1.0, max(threat.density, -(-length // 1) / x[0].numel())))


def _times(steps: Tensor, direction: Tensor) -> Tensor:
    """Return every step along every image's direction, (steps, b, c, h, w)."""
    return steps[:, None, None, None, None] * direction


def _curvature(losses: np.ndarray) -> float:
    """Return the mean absolute second difference along both axes of (p, p, b)."""
    both = [np.abs(np.diff(losses, n=2, axis=axis)).mean() for axis in (0, 1)]
    return float(np.mean(both))


def _check(points: int, reach: float, batch_size: int) -> None:
    if isinstance(points, bool) or points < 3 or points % 2 == 0:
        raise InputError(
            f"points must be an odd number, 3 or more, so that x is on the grid, got {points!r}."
        )
    if not 0 < reach < float("inf"):
        raise InputError(f"reach must be a positive number of radii, got {reach!r}.")
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {batch_size!r}.")
