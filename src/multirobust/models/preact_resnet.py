"""Pre-activation residual networks: BatchNorm and ReLU before each convolution.

With the stem of small images: a 3x3 convolution of stride 1, no pooling. Every shortcut that
changes shape is a 1x1 convolution of the activated input.

References: He et al., Identity mappings in deep residual networks, ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias, final

from torch import Tensor, nn

from multirobust.models.base import Trunk, check_count

__all__ = ["BasicBlock", "Bottleneck", "pre_activation_trunk", "preact_resnet"]


@final
class BasicBlock(nn.Module):
    """x + conv3x3(act(conv3x3(act(x)))), where act is BatchNorm and ReLU.

    Args:
        inputs: Number of channels of x.
        width: Channels of the block; it returns as many.
        stride: Stride of the first convolution.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.activation = _activation(inputs)
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False),
            _activation(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )
        self.shortcut = _projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, width, h / stride, w / stride)."""
        return _add_residual(x, self.activation, self.residual, self.shortcut)


@final
class Bottleneck(nn.Module):
    """x + conv1x1(act(conv3x3(act(conv1x1(act(x)))))), where act is BatchNorm and ReLU.

    Args:
        inputs: Number of channels of x.
        width: Channels inside the block; it returns four times as many.
        stride: Stride of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.activation = _activation(inputs)
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            _activation(width),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            _activation(width),
            nn.Conv2d(width, width * self.expansion, 1, bias=False),
        )
        self.shortcut = _projection(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, 4 * width, h / stride, w / stride)."""
        return _add_residual(x, self.activation, self.residual, self.shortcut)


Block: TypeAlias = type[BasicBlock] | type[Bottleneck]


def preact_resnet(channels: int, *, block: Block, depths: Sequence[int], width: int = 64) -> Trunk:
    """Return four stages of 1, 2, 4 and 8 times the width; all but the first halve the image.

    Args:
        channels: Number of channels of the images.
        block: The kind of block.
        depths: Number of blocks of each stage.
        width: Channels of the stem and of the blocks of the first stage.

    Raises:
        InputError: If width is not a positive integer.
    """
    check_count("width", width, 1, "the published networks have 64")
    widths = [width * 2**stage for stage in range(len(depths))]
    return pre_activation_trunk(channels, stem=width, widths=widths, depths=depths, block=block)


def pre_activation_trunk(
    channels: int, *, stem: int, widths: Sequence[int], depths: Sequence[int], block: Block
) -> Trunk:
    """Return a 3x3 stem, stages of pre-activation blocks, and a last BatchNorm and ReLU.

    Args:
        channels: Number of channels of the images.
        stem: Channels of the stem.
        widths: Width of the blocks of each stage; the first block of all stages but the first has
            stride 2.
        depths: Number of blocks of each stage.
        block: The kind of block.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, stem, 3, padding=1, bias=False)]
    outputs = [stem, *(width * block.expansion for width in widths)]
    for stage, (inputs, output) in enumerate(pairwise(outputs)):
        stride = 1 if stage == 0 else 2
        layers.append(block(inputs, widths[stage], stride))
        layers += [block(output, widths[stage], 1) for _ in range(depths[stage] - 1)]
    return Trunk(nn.Sequential(*layers, _activation(outputs[-1])), outputs[-1])


def _activation(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def _projection(inputs: int, outputs: int, stride: int) -> nn.Conv2d | None:
    """Return the shortcut of a block that changes shape; None stands for the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def _add_residual(
    x: Tensor, activation: nn.Module, residual: nn.Module, shortcut: nn.Module | None
) -> Tensor:
    activated = activation(x)
    return residual(activated) + (x if shortcut is None else shortcut(activated))
