"""Snow: flakes at fixed places whose intensities are adversarial, blurred along their fall."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from multirobust.attacks.parametric import Parameters
from multirobust.attacks.unforeseen.base import STEP_LENGTH, Unforeseen, check_channels, uniform
from multirobust.types import Images

__all__ = ["Snow"]

_BUDGET = 0.2
"""Largest mean intensity of one kind of flakes in a region, and the rate of the start."""

_REGION = 8
"""Side of a region, in cells of four pixels."""

_CELL = 4
_PLACES = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0))
"""Row and column in its cell of each of the seven kinds of flakes."""

_WASH = 0.25
"""Share of the image that is washed out toward a light gray."""

_LUMA = (0.2126, 0.7152, 0.0722)
"""Share of red, green and blue in the luminance (ITU-R BT.709)."""

_HALF = 6
"""A streak lies in a square of 2 * 6 + 1 pixels."""

_FAINTEST = 1e-9
"""Intensity below which the gradient would vanish."""


@final
@dataclass(frozen=True, kw_only=True)
class Snow(Unforeseen):
    """Snow: flakes of seven kinds, each a streak of random direction, length and width.

    A kind has one flake in each cell of 4 x 4 pixels. The parameters are the intensities of the
    flakes in [0, 1], on average at most 0.2 for each kind and 32 x 32 pixels; their fourth
    powers are drawn, so that few flakes stand out. The image under the snow is washed out first,
    by the same amount at every radius.

    Args:
        radius: Brightness of the snow: what a flake of intensity 1 adds to a pixel.
        steps: Number of steps, at least 1.
        objective: The loss to raise.

    References: Kang et al., 2019. The radii are calibrated for ImageNet-100 (224 x 224); there are
    none for CIFAR-10.
    """

    name: ClassVar[str] = "snow"
    severities: ClassVar[tuple[float, ...]] = (0.0625, 0.125, 0.25, 2.0, 4.0, 8.0)

    @property
    def step_size(self) -> float:
        """On the scale [0, 1] of the intensities."""
        return STEP_LENGTH / math.sqrt(self.steps)

    def start(self, x: Images, generator: torch.Generator) -> Parameters:
        """Return "flakes", the random intensities (b, 7, h / 4, w / 4), and "streaks".

        The streaks (b, 7, 16, 16) are the shapes of the seven kinds, each at its place in the cell;
        they stay as they are.
        """
        check_channels(x, "Snow")
        cells = [math.ceil(side / _CELL) for side in x.shape[2:]]
        flakes = torch.exp(-uniform(x, (len(_PLACES), *cells), generator) / _BUDGET)
        return {"flakes": _within_budget(flakes), "streaks": _placed(_streaks(x, generator))}

    def render(self, x: Images, parameters: Parameters) -> Images:
        """Return the washed out images with the snow on top."""
        shares = x.new_tensor(_LUMA if x.shape[1] == 3 else (1.0,))
        luma = (x * shares[:, None, None]).sum(1, keepdim=True)
        light = torch.maximum(x, 1.5 * luma + 0.5)
        washed = (1 - _WASH) * x + _WASH * light
        snow = _fallen(parameters["flakes"].pow(4), parameters["streaks"].detach())
        h, w = x.shape[2:]
        return (washed + self.radius * snow[:, :, :h, :w]).clamp(0, 1)

    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Return the intensities after a step by the sign of the gradient, within the budget."""
        flakes = parameters["flakes"] + self.step_size * gradients["flakes"].sign()
        return {
            "flakes": _within_budget(flakes.clamp(_FAINTEST, 1)),
            "streaks": parameters["streaks"],
        }


def _fallen(heights: Tensor, streaks: Tensor) -> Tensor:
    """Return the snow (b, 1, 4 rows, 4 columns) of flakes (b, 7, rows, columns) of some heights."""
    rows, columns = (_CELL * cells for cells in heights.shape[2:])
    side = streaks.shape[-1]
    drawn = streaks.flatten(2).transpose(1, 2) @ heights.flatten(2)
    reached = (rows + side - _CELL, columns + side - _CELL)
    snow = F.fold(drawn, reached, kernel_size=side, stride=_CELL)
    return snow[:, :, _HALF : _HALF + rows, _HALF : _HALF + columns]


def _placed(streaks: Tensor) -> Tensor:
    """Return the shapes (b, 7, 13, 13) in squares of 16 pixels, moved to their places in a cell."""
    room = _CELL - 1
    padded = [
        F.pad(streaks[:, kind], (column, room - column, row, room - row))
        for kind, (row, column) in enumerate(_PLACES)
    ]
    return torch.stack(padded, dim=1)


def _within_budget(flakes: Tensor) -> Tensor:
    """Return the intensities, scaled down in each region whose mean exceeds the budget."""
    rows, columns = (_regions(side).to(flakes) for side in flakes.shape[2:])
    sizes = rows.sum(0)[:, None] * columns.sum(0)
    means = rows.T @ flakes @ columns / sizes
    return flakes * (rows @ (_BUDGET / means).clamp(max=1) @ columns.T)


def _regions(cells: int) -> Tensor:
    """Return which region each cell along an axis is in, one-hot (cells, regions)."""
    count = max(cells // _REGION, 1)
    return F.one_hot(torch.arange(cells) * count // cells, count)


def _streaks(x: Images, generator: torch.Generator) -> Tensor:
    """Draw the shapes of the flakes (b, 7, 13, 13): blurred lines through the center.

    A line reaches 2 to 6 pixels along each axis and is 1, 3 or 5 wide, with probabilities of 0.6,
    0.3 and 0.1. All lines of an image fall to the same side.
    """
    draws = uniform(x, (5, len(_PLACES), 1, 1), generator)
    reach = 2 + (draws[:, :2] * (_HALF - 1)).floor()
    down, across = reach.unbind(1)
    width = 1 + 2 * (draws[:, 2] >= 0.6).to(x) + 2 * (draws[:, 2] >= 0.9).to(x)
    side = 1 - 2 * (draws[:, 3, :1] < 0.5).to(x)
    steep = down > across
    long, short = torch.maximum(down, across), torch.minimum(down, across)
    slope = short / long
    axis = torch.arange(-_HALF, _HALF + 1).to(x)
    row, column = axis[:, None], side * axis
    along, beside = torch.where(steep, row, column), torch.where(steep, column, row)
    thickness = width * (1 + slope).sqrt() / 2
    line = (1 + thickness / 2 - (beside - slope * along).abs()).clamp(0, 1) * (along.abs() <= long)
    return _blurred(line, 0.41 + 0.19 * draws[:, 4])


def _blurred(lines: Tensor, std: Tensor) -> Tensor:
    """Return the lines (b, k, n, n), each blurred over 3 x 3 pixels by a Gaussian (b, k, 1, 1)."""
    b, k, n, _ = lines.shape
    axis = torch.arange(-1, 2).to(lines)
    bell = torch.exp(-(axis[:, None].square() + axis.square()) / (2 * std.square()))
    bell = (bell / bell.sum((2, 3), keepdim=True)).reshape(b * k, 1, 3, 3)
    return F.conv2d(lines.reshape(1, b * k, n, n), bell, groups=b * k, padding=1).reshape(
        b, k, n, n
    )
