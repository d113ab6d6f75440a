"""ReColor: every color of an image becomes another color, equal colors the same one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from multirobust.attacks.parametric import Parameters
from multirobust.attacks.stadv import FieldAttack
from multirobust.errors import InputError
from multirobust.types import Images

__all__ = ["ReColor", "luv_from_rgb", "rgb_from_luv"]

_XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
"""Linear sRGB to CIE XYZ (ITU-R BT.709 primaries, D65)."""

_RGB_FROM_XYZ = torch.linalg.inv(torch.tensor(_XYZ_FROM_RGB, dtype=torch.float64)).tolist()

_WHITE_U, _WHITE_V = (4 * 0.95047 / 19.21696, 9 / 19.21696)
"""u' and v' of the white point D65 for the 2 degree observer; 19.21696 is its X + 15 Y + 3 Z."""

_DARK = (6 / 29) ** 3
"""Luminance below which L* is linear, by a factor of (29 / 3)^3."""

_LEAST_L, _LEAST_V = 1e-3, 0.05
"""L* and v' are raised to these before something is divided by them. No sRGB color has such a v',
and such an L* only blacks below 2e-5."""


@final
@dataclass(frozen=True, kw_only=True)
class ReColor(FieldAttack):
    """Functional adversarial images: the same smooth function of color for every pixel.

    The function adds to a color an offset, interpolated from a grid of offsets over the color
    space: for three channels a grid over CIELUV in unit scale (see `luv_from_rgb`), so that 0.06
    is 6 in L* and 12 in u* and v*; for one channel a grid over the gray values in [0, 1], as long
    as the one over L*. A color beyond the grid's end takes the offset of the end.

    Memory: three times 192 KiB for each image of three channels at the published grid in float32,
    and about as much again for the step.

    Args:
        radius: Largest offset of a channel, on the unit scale; below 1.
        steps: Number of steps, at least 1.
        step_size: Adam's learning rate, in radii; the public code has 1 / 60 for 100 steps.
        smoothness: First weight of the roughness of the offsets in radii, from 0; published is a
            constant 0.0036, which is weaker (see `FieldAttack`).
        random_start: Start at uniform offsets instead of none.
        objective: The loss to raise; published is the margin.
        grid: Points of the grid along L*, u* and v*, at least 2 each.

    References: Laidlaw and Feizi, Functional adversarial attacks, NeurIPS 2019; smoothness of
    Laidlaw, Singla and Feizi, Perceptual adversarial robustness, ICLR 2021.
    """

    name: ClassVar[str] = "recolor"
    severities: ClassVar[tuple[float, ...]] = tuple(round(0.005 * i, 3) for i in range(1, 21))
    """Radii 0.005, 0.01, ..., 0.1 of MultiRobustBench (Dai et al., ICML 2023) on CIFAR-10. The one
    that papers report most is level 12: 0.06."""

    step_size: float = 0.2
    smoothness: float = 0.0005
    grid: tuple[int, int, int] = (16, 32, 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius >= 1:
            raise InputError(
                "ReColor: radius must be a share of a channel's range, below 1, got "
                f"{self.radius!r}; the published one is 0.06."
            )
        if len(self.grid) != 3 or min(self.grid) < 2:
            raise InputError(
                f"ReColor: grid must be three numbers from 2 on, got {self.grid!r}; the published "
                "one is (16, 32, 32)."
            )

    def shape(self, x: Images) -> tuple[int, ...]:
        """See `FieldAttack.shape`.

        Raises:
            InputError: If the images have neither one nor three channels.
        """
        if x.shape[1] == 1:
            return (1, self.grid[0])
        if x.shape[1] == 3:
            return (3, *self.grid)
        raise InputError(
            "ReColor: images must have 1 (gray) or 3 (RGB) channels, got shape "
            f"{tuple(x.shape)}; leave this attack out."
        )

    def render(self, x: Images, parameters: Parameters) -> Images:
        """See `ParametricAttack.render`."""
        offsets = self.radius * parameters["field"]
        if x.shape[1] == 1:
            return (x + _interpolate(offsets[:, :, None, None], x)).clamp(0, 1)
        with torch.no_grad():
            color = luv_from_rgb(x)
        return rgb_from_luv(color + _interpolate(offsets, color)).clamp(0, 1)


def _interpolate(grid: Tensor, color: Images) -> Images:
    """Return the grid's value at each color, trilinear; (b, c, *) for colors (b, c, h, w).

    Args:
        grid: Shape (b, c, d, h, w), over the first channel, the second and the third. Over one
            channel only the last axis has more than one point.
        color: In [0, 1]; what lies outside is moved to the nearest end.
    """
    places = (color * 2 - 1).movedim(1, -1).flip(-1)[:, None]
    places = F.pad(places, (0, 3 - color.shape[1]))
    values = F.grid_sample(grid, places, padding_mode="border", align_corners=True)
    return values.squeeze(2)


def luv_from_rgb(x: Images) -> Images:
    """Return sRGB images (b, 3, h, w) in CIELUV (D65) on the unit scale.

    The channels are L* / 100, (u* + 100) / 200 and (v* + 100) / 200. For colors of sRGB the first
    lies in [0, 1], the second in [0.08, 1.38] and the third in [-0.18, 1.04].
    """
    linear = torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    big_x, big_y, big_z = torch.einsum("ij,bjhw->ibhw", x.new_tensor(_XYZ_FROM_RGB), linear)
    total = big_x + 15 * big_y + 3 * big_z
    black = total <= 0
    total = total.masked_fill(black, 1)
    light = 116 * big_y.clamp(min=_DARK) ** (1 / 3) - 16
    light = torch.where(big_y > _DARK, light, (29 / 3) ** 3 * big_y)
    u = 13 * light * (4 * big_x / total - _WHITE_U)
    v = 13 * light * (9 * big_y / total - _WHITE_V)
    return torch.stack((light / 100, (u + 100) / 200, (v + 100) / 200), dim=1)


def rgb_from_luv(color: Images) -> Images:
    """Return sRGB images of colors on the unit scale of `luv_from_rgb`; differentiable.

    Colors outside sRGB leave [0, 1]. X, Y and Z are kept in [0, 1.1], so that all is finite.
    """
    light = (100 * color[:, 0]).clamp(0, 105)
    chroma = 13 * light.clamp(min=_LEAST_L)
    u = (200 * color[:, 1] - 100) / chroma + _WHITE_U
    v = ((200 * color[:, 2] - 100) / chroma + _WHITE_V).clamp(min=_LEAST_V)
    big_y = torch.where(light > 8, ((light + 16) / 116) ** 3, light * (3 / 29) ** 3)
    big_x = (big_y * 9 * u / (4 * v)).clamp(0, 1.1)
    big_z = (big_y * (12 - 3 * u - 20 * v) / (4 * v)).clamp(0, 1.1)
    xyz = torch.stack((big_x, big_y, big_z))
    linear = torch.einsum("ij,jbhw->bihw", color.new_tensor(_RGB_FROM_XYZ), xyz)
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear)
