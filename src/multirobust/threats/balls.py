"""The three norm balls: distance, exact projection, steepest ascent and uniform random starts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from multirobust.errors import InputError
from multirobust.ranks import drawn
from multirobust.threats.base import Threat
from multirobust.threats.native import is_native, sparse_direction
from multirobust.threats.projection import (
    add_toward,
    project_l1,
    project_l2,
    project_linf,
    work_dtype,
)
from multirobust.types import Images, PerImage

__all__ = ["L1", "L2", "Linf"]


@final
@dataclass(frozen=True)
class Linf(Threat):
    """Every pixel moves by at most the radius.

    Args:
        radius: On the [0, 1] pixel scale; with 1, every image is in the ball.

    Raises:
        InputError: If the radius is not in (0, 1].
    """

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius > 1:
            raise InputError(
                f"Linf: radius must be at most 1, since no two pixels in [0, 1] are farther apart, "
                f"got {self.radius!r}; write {self.radius:g} / 255, which is "
                f"{self.radius / 255:.4g}, in place of {self.radius:g}."
            )

    def distance(self, x_adv: Images, x: Images) -> PerImage:
        """Return the largest absolute difference of each image. Shape (b,)."""
        return _difference(x_adv, x).abs().amax(1)

    def project(self, x_adv: Images, x: Images) -> Images:
        """Return the closest point of the ball around x within [0, 1]. See `project_linf`."""
        return project_linf(x_adv, x, self.radius)

    def ascent_direction(self, gradient: Images, x_adv: Images) -> Images:
        """Return the sign of the gradient."""
        return gradient.to(work_dtype(gradient)).sign()

    def sample(self, x: Images, generator: torch.Generator | None = None) -> Images:
        """Return x plus uniform noise in [-radius, radius], clipped to [0, 1]."""
        x = x.to(work_dtype(x))
        options = {"generator": _own(generator, x), "dtype": x.dtype, "device": x.device}
        uniform = drawn(torch.rand, x.shape, **options)
        return _displaced(x, self.radius * (2 * uniform - 1))


@final
@dataclass(frozen=True)
class L2(Threat):
    """The Euclidean length of the difference is at most the radius.

    Args:
        radius: On the [0, 1] pixel scale.
    """

    norm: ClassVar[str] = "l2"

    def distance(self, x_adv: Images, x: Images) -> PerImage:
        """Return the Euclidean length of the difference of each image. Shape (b,)."""
        return torch.linalg.vector_norm(_difference(x_adv, x), dim=1)

    def project(self, x_adv: Images, x: Images) -> Images:
        """Return the closest point of the ball around x within [0, 1]. See `project_l2`."""
        return project_l2(x_adv, x, self.radius)

    def ascent_direction(self, gradient: Images, x_adv: Images) -> Images:
        """Return the gradient divided by its length; zero where the whole gradient is zero."""
        g = gradient.to(work_dtype(gradient)).flatten(1)
        peak = g.abs().amax(1, keepdim=True)
        g = g / torch.where(peak > 0, peak, 1)  # squares of 1e-30 or 1e30 leave float32
        length = torch.linalg.vector_norm(g, dim=1, keepdim=True)
        return (g / torch.where(length > 0, length, 1)).reshape(gradient.shape)

    def sample(self, x: Images, generator: torch.Generator | None = None) -> Images:
        """Return a point drawn uniformly from the ball, clipped to [0, 1].

        A Gaussian direction at distance radius * u^(1 / n), with u uniform in [0, 1].
        """
        x, generator = x.to(work_dtype(x)), _own(generator, x)
        options = {"generator": generator, "dtype": x.dtype, "device": x.device}
        gaussian = drawn(torch.randn, x.shape, **options).flatten(1)
        share = drawn(torch.rand, (len(x), 1), **options) ** (1 / gaussian.shape[1])
        length = torch.linalg.vector_norm(gaussian, dim=1, keepdim=True)
        delta = gaussian * (self.radius * share / torch.where(length > 0, length, 1))
        return _displaced(x, delta.reshape(x.shape))


@final
@dataclass(frozen=True)
class L1(Threat):
    """The absolute differences add up to at most the radius.

    Args:
        radius: On the [0, 1] pixel scale.
        density: Share of the coordinates that one ascent step moves. 1 / n gives the steepest
            ascent of theory, one coordinate a step; the paper's attack moves the top 1 %.

    Raises:
        InputError: If the radius is not positive and finite, or density is not in (0, 1].
    """

    norm: ClassVar[str] = "l1"

    density: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.density, (int, float)) and 0 < self.density <= 1):
            raise InputError(
                "L1: density must be a share of the coordinates in (0, 1], "
                f"got {self.density!r}; the paper's attack uses 0.01."
            )
        object.__setattr__(self, "density", float(self.density))

    def distance(self, x_adv: Images, x: Images) -> PerImage:
        """Return the sum of the absolute differences of each image. Shape (b,)."""
        return _difference(x_adv, x).abs().sum(1)

    def project(self, x_adv: Images, x: Images) -> Images:
        """Return the closest point of the ball around x within [0, 1]. See `project_l1`."""
        return project_l1(x_adv, x, self.radius)

    def ascent_direction(self, gradient: Images, x_adv: Images) -> Images:
        """Return equal steps in the `density` coordinates of largest gradient, of l1 norm 1.

        Only coordinates that [0, 1] still lets move count: a pixel at 1 cannot grow, one at 0
        cannot shrink. If fewer than max(1, round(density * n)) of them have a gradient, the step
        is shared among those; an image without any stays where it is.
        """
        g = gradient.to(work_dtype(gradient)).flatten(1)
        pixels = x_adv.flatten(1)
        count = max(1, round(self.density * g.shape[1]))
        if is_native(g, pixels):
            return sparse_direction(g, pixels, count).reshape(gradient.shape)
        movable = ((g > 0) & (pixels < 1)) | ((g < 0) & (pixels > 0))
        score = torch.where(movable, g.abs(), 0)
        best, index = score.topk(count, dim=1)
        step = (best > 0).to(g.dtype)
        step = step / step.sum(1, keepdim=True).clamp(min=1)
        direction = torch.zeros_like(g).scatter(1, index, step) * g.sign()
        return direction.reshape(gradient.shape)

    def sample(self, x: Images, generator: torch.Generator | None = None) -> Images:
        """Return a point drawn uniformly from the ball, clipped to [0, 1].

        The first n of n + 1 exponential variables, divided by the sum of all and with random
        signs, are uniform in the unit ball.

        References: Barthe, Guedon, Mendelson and Naor, A probabilistic approach to the geometry of
        the l_p^n-ball, Annals of Probability 2005.
        """
        x, generator = x.to(work_dtype(x)), _own(generator, x)
        shape = (len(x), x[0].numel() + 1)
        options = {"generator": generator, "device": x.device}
        sizes = drawn(_exponential, shape, dtype=x.dtype, **options)
        share = sizes[:, :-1] / sizes.sum(1, keepdim=True)
        coins = drawn(partial(torch.randint, 2), share.shape, **options)
        delta = self.radius * share * (2 * coins - 1)
        return _displaced(x, delta.reshape(x.shape))


def _difference(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return x_adv - x as (b, n), at least in float32."""
    dtype = work_dtype(x_adv, x)
    return (x_adv.to(dtype) - x.to(dtype)).flatten(1)


def _displaced(x: Tensor, delta: Tensor) -> Tensor:
    """Return x + delta clipped to [0, 1]. As x is in the box, no coordinate moves any farther."""
    return add_toward(x, torch.minimum(torch.maximum(delta, -x), 1 - x))


def _exponential(shape: tuple[int, ...], generator: torch.Generator, **options: Any) -> Tensor:
    return torch.empty(shape, **options).exponential_(generator=generator)


def _own(generator: torch.Generator | None, x: Tensor) -> torch.Generator:
    """Return the generator, or without one a new generator with seed 0 on the device of x."""
    if generator is None:
        return torch.Generator(x.device).manual_seed(0)
    if generator.device.type != x.device.type:
        raise InputError(
            f"sample: generator must be on the device of the images, {x.device}, "
            f"got one on {generator.device}; make it with torch.Generator({x.device.type!r})."
        )
    return generator
