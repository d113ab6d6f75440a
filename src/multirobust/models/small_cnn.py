"""A plain stack of convolutions, for small images and small machines."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from multirobust.errors import InputError
from multirobust.models.base import Trunk, check_count

__all__ = ["small_cnn"]


def small_cnn(channels: int, *, widths: Sequence[int] = (32, 64, 128, 128)) -> Trunk:
    """Return a 3x3 convolution, BatchNorm and ReLU for each width; the first keeps the size.

    With the default widths, 3 channels and 10 classes: 242,474 parameters, and 25.4 MFLOP (12.7
    million multiply-adds) for the forward pass of one 32x32 image. Every later layer has
    stride 2: 8x8 digits end at 1x1, 32x32 images at 4x4, before the average. Any size will do.

    Args:
        channels: Number of channels of the images.
        widths: Channels of each layer, at least one layer.

    Raises:
        InputError: If there is no layer, or a width is not a positive integer.
    """
    if isinstance(widths, str) or not isinstance(widths, Sequence) or not widths:
        raise InputError(
            f"widths must be a sequence of one or more layer widths, got {widths!r}; "
            "for example (32, 64, 128, 128)."
        )
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        check_count(f"widths[{index}]", width, 1, "it is the number of channels of a layer")
        stride = 1 if index == 0 else 2
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return Trunk(nn.Sequential(*layers), channels)
