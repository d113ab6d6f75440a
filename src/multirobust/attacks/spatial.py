"""Rotation and translation: exhaustive grid, worst of random draws, and gradient ascent.

The radius is the largest angle in degrees. The largest translation grows with it, by 0.1 pixel a
degree for an image of side 32: radius 30 is the published pair of 30 degrees and 3 of 32 pixels.

References: Engstrom, Tran, Tsipras, Schmidt and Madry, Exploring the landscape of spatial
robustness, ICML 2019.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.attacks.base import Attack, attacking, check_batch
from multirobust.attacks.objectives import Margin, Objective
from multirobust.attacks.parametric import Parameters, ParametricAttack
from multirobust.errors import InputError, lookup_error
from multirobust.ranks import drawn
from multirobust.threats import Transformation
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels, PerImage

__all__ = ["SpatialGradient", "SpatialGrid", "SpatialRandom", "rotate_and_translate"]

_SEVERITIES = (10.0, 20.0, 30.0, 40.0)
"""Degrees. The attack of Engstrom et al. on CIFAR-10 has 30 (30 degrees and 3 pixels); the levels
around it keep its proportion of angle and translation."""

_SHIFT_PER_DEGREE = 3 / 32 / 30
"""Translation that goes with a degree, as a share of the side."""

_PADDINGS = ("zeros", "reflection")

Padding = Literal["zeros", "reflection"] | str


def rotate_and_translate(
    x: Images, angle: PerImage, shift: Tensor, *, padding: Padding = "zeros"
) -> Images:
    """Return each image rotated about its center and then translated; bilinear, differentiable.

    Args:
        x: Images (b, c, h, w).
        angle: Counterclockwise, in degrees, (b,).
        shift: To the right and down, in pixels, (b, 2).
        padding: What lies beyond the border: "zeros", the published setting, or "reflection",
            which mirrors the image at the center of its outermost pixels.
    """
    # What is drawn at p was at R(p - shift), in pixels from the center.
    half_width, half_height = (max(side - 1, 1) / 2 for side in (x.shape[3], x.shape[2]))
    radians = angle * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    right, down = shift.unbind(1)
    rows = (
        (cos, -sin * (half_height / half_width), (-cos * right + sin * down) / half_width),
        (sin * (half_width / half_height), cos, (-sin * right - cos * down) / half_height),
    )
    theta = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    positions = F.affine_grid(theta, list(x.shape), align_corners=True)
    drawn = F.grid_sample(x, positions, padding_mode=padding, align_corners=True)
    return drawn.clamp(0, 1)


def _render(x: Images, share: Tensor, radius: float, padding: Padding) -> Images:
    """Return x transformed by (b, 3) shares of the largest angle, shift right and shift down."""
    sides = share.new_tensor((x.shape[3], x.shape[2]))
    shift = share[:, 1:] * (radius * _SHIFT_PER_DEGREE) * sides
    return rotate_and_translate(x, share[:, 0] * radius, shift, padding=padding)


def _check(name: str, radius: float, padding: Padding) -> None:
    Transformation("spatial", radius)
    if radius > 180:
        raise InputError(
            f"{name}: radius must be an angle in degrees of at most 180, got {radius!r}; the "
            "published one is 30."
        )
    if padding not in _PADDINGS:
        raise lookup_error("padding", padding, _PADDINGS)


@dataclass(frozen=True, kw_only=True)
class _SpatialSearch(Attack, abc.ABC):
    """Every one of a list of transformations of each image, until one fools the model.

    Returns the first that is misclassified, else the one of greatest margin. Several versions of an
    image share a forward pass, which never holds more images than the batch given. An image that
    is broken leaves, and the others use its place.
    """

    severities: ClassVar[tuple[float, ...]] = _SEVERITIES
    """Radii in degrees, level 1 first. Level 3 is published."""

    radius: float
    padding: Padding = "zeros"

    def __post_init__(self) -> None:
        _check(type(self).__name__, self.radius, self.padding)

    @property
    def threats(self) -> tuple[Transformation, ...]:
        """Its one transformation."""
        return (Transformation("spatial", self.radius),)

    @abc.abstractmethod
    def shares(self, x: Images, generator: torch.Generator | None) -> Tensor:
        """Return what is tried, in shares of the radius in [-1, 1], shape (b, tries, 3).

        The columns are angle, shift to the right and shift down.
        """

    @torch.no_grad()
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
        shares = self.shares(x, generator)
        best = x.clone()
        best_margin = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        standing, begin = torch.arange(len(x), device=x.device), 0
        with attacking(model):
            while len(standing) and begin < shares.shape[1]:
                tries = shares[standing, begin : begin + len(x) // len(standing)]
                begin += tries.shape[1]
                drawn, margin = self._strongest(model, x[standing], y[standing], tries)
                better = margin > best_margin[standing]
                best[standing[better]] = drawn[better]
                best_margin[standing[better]] = margin[better]
                standing = standing[margin < torch.inf]
        return best

    def _strongest(
        self, model: nn.Module, x: Images, y: Labels, tries: Tensor
    ) -> tuple[Images, PerImage]:
        """Return the best of (b, t, 3) tries of each image and its margin; inf if it is wrong."""
        count = tries.shape[1]
        x, y = x.repeat_interleave(count, dim=0), y.repeat_interleave(count)
        drawn = _render(x, tries.flatten(0, 1), self.radius, self.padding)
        logits = model(drawn)
        wrong = (logits.argmax(1) != y) | logits.isnan().any(1)
        margin = Margin().of(logits, y, y).to(x.dtype).masked_fill(wrong, torch.inf)
        margin, first = margin.view(-1, count).max(dim=1)
        return drawn.view(-1, count, *x.shape[1:])[torch.arange(len(first)), first], margin


@final
@dataclass(frozen=True, kw_only=True)
class SpatialGrid(_SpatialSearch):
    """All combinations of evenly spaced angles and translations, the strongest first.

    Costs up to angles * translations^2 forward passes an image: 775 as published.

    Args:
        radius: Largest angle in degrees, up to 180; see the module for the translation.
        padding: See `rotate_and_translate`.
        angles: Number of angles from -radius to radius, at least 2; odd includes 0.
        translations: Number of translations along each axis, at least 2; odd includes 0.

    References: Engstrom et al., ICML 2019.
    """

    angles: int = 31
    translations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("angles", self.angles), ("translations", self.translations)):
            if value < 2:
                raise InputError(f"SpatialGrid: {name} must be at least 2, got {value!r}.")

    def shares(self, x: Images, generator: torch.Generator | None) -> Tensor:
        """See `_SpatialSearch.shares`. Draws nothing: the generator is not used."""
        steps = (self.angles, self.translations, self.translations)
        members = list(itertools.product(*(_evenly(count) for count in steps)))
        members.sort(key=lambda share: -sum(value**2 for value in share))
        return x.new_tensor(members).expand(len(x), -1, -1)


@final
@dataclass(frozen=True, kw_only=True)
class SpatialRandom(_SpatialSearch):
    """The worst of some transformations drawn uniformly for each image.

    Costs up to `draws` forward passes an image.

    Args:
        radius: Largest angle in degrees, up to 180; see the module for the translation.
        padding: See `rotate_and_translate`.
        draws: How many, at least 1; 10 as published.

    References: Engstrom et al., ICML 2019.
    """

    draws: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise InputError(f"SpatialRandom: draws must be at least 1, got {self.draws!r}.")

    def shares(self, x: Images, generator: torch.Generator | None) -> Tensor:
        """See `_SpatialSearch.shares`."""
        generator = generator or torch.Generator(x.device).manual_seed(0)
        return _uniform(x, (len(x), self.draws, 3), generator)


@final
@dataclass(frozen=True, kw_only=True)
class SpatialGradient(ParametricAttack):
    """Signed gradient ascent on angle and translation from a random start.

    The loss has many local maxima in these three numbers, so that it is weaker than a grid alone;
    `Restarts` repeats it.

    Args:
        radius: Largest angle in degrees, up to 180; see the module for the translation.
        steps: Number of steps, at least 1.
        step_size: Length of the first step, as a share of the radius; later ones shrink linearly.
        padding: See `rotate_and_translate`.
        objective: The loss to raise.

    References: Engstrom et al., ICML 2019.
    """

    name: ClassVar[str] = "spatial"
    severities: ClassVar[tuple[float, ...]] = _SEVERITIES
    """Radii in degrees, level 1 first. Level 3 is published."""

    step_size: float = 0.2
    padding: Padding = "zeros"
    objective: Objective = Margin()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("SpatialGradient", self.radius, self.padding)
        if not 0 < self.step_size <= 1:
            raise InputError(
                "SpatialGradient: step_size must be a share of the radius in (0, 1], got "
                f"{self.step_size!r}."
            )

    def start(self, x: Images, generator: torch.Generator) -> Parameters:
        """See `ParametricAttack.start`."""
        return {"share": _uniform(x, (len(x), 3), generator)}

    def render(self, x: Images, parameters: Parameters) -> Images:
        """See `ParametricAttack.render`."""
        return _render(x, parameters["share"], self.radius, self.padding)

    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """See `ParametricAttack.ascend`."""
        size = self.step_size * (1 - step / self.steps)
        moved = parameters["share"].detach() + size * gradients["share"].sign()
        return {"share": moved.clamp(-1, 1)}


def _evenly(count: int) -> Iterator[float]:
    """Yield numbers from -1 to 1."""
    return (2 * i / (count - 1) - 1 for i in range(count))


def _uniform(x: Images, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return numbers drawn uniformly from [-1, 1)."""
    options = {"dtype": x.dtype, "device": x.device}
    return drawn(torch.rand, shape, generator=generator, **options) * 2 - 1
