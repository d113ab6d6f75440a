"""Wide residual networks: few, wide pre-activation blocks, in three stages.

References: Zagoruyko and Komodakis, Wide residual networks, BMVC 2016.
"""

from __future__ import annotations

from multirobust.models.base import Trunk
from multirobust.models.preact_resnet import BasicBlock, pre_activation_trunk

__all__ = ["wide_resnet"]


def wide_resnet(channels: int, *, depth: int, widen: int) -> Trunk:
    """WRN-depth-widen, without dropout; the second and third stage halve the image.

    Args:
        channels: Number of channels of the images.
        depth: Number of layers, 4 more than a multiple of 6: two convolutions in each block of the
            three stages, the stem, the head, and two shortcuts by the published way of counting.
        widen: Factor on the widths 16, 32 and 64.
    """
    return pre_activation_trunk(
        channels,
        stem=16,
        widths=[16 * widen, 32 * widen, 64 * widen],
        depths=[(depth - 4) // 6] * 3,
        block=BasicBlock,
    )
