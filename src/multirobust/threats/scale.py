"""Is a radius on the [0, 1] pixel scale? One meant in 0..255 is not, and the norm cannot tell."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from multirobust.errors import InputError
from multirobust.threats.base import Threat
from multirobust.threats.presets import THREAT_PRESETS

__all__ = ["check_scale"]

SHARE = 1 / 8
"""Of the farthest distance: from there on a whole number is taken for one in 0..255."""

TIMES = 15
"""The same in benchmark radii, where the data set has them: there this counts and not the share."""


def check_scale(name: str, threat: Threat, shape: Sequence[int], *, source: str = "") -> None:
    """Raise where a radius is on another scale than that of the pixels, [0, 1].

    Two kinds are refused. A radius beyond the farthest distance of two images makes no sense. A
    whole number of 2 or more that is large, as 8 in l2 or 2000 in l1 are for 3x32x32 pixels, is
    taken for one that was meant in 0..255. No published radius is: whole ones, such as 12 in l1
    for CIFAR-10 or 3 in l2 for ImageNet, are far smaller for their images. Who means such a ball
    writes a number that is not whole.

    Args:
        name: Of the threat, for the message.
        threat: The ball.
        shape: Of an image, (c, h, w).
        source: Name of the data set; "" if it is one's own.

    Raises:
        InputError: If it is one of the two.
    """
    radius, shape = threat.radius, tuple(shape)
    farthest = float(threat.distance(torch.ones(1, *shape), torch.zeros(1, *shape)))
    rule = f"{name}: radius must be on the [0, 1] pixel scale, got {radius:g}"
    way = f"write {radius:g} / 255, which is {radius / 255:.4g}, in place of {radius:g}"
    if radius > farthest:
        raise InputError(
            f"{rule}, where no two images of shape {shape} are farther apart than {farthest:.4g}; "
            f"{way}."
        )
    usual = {ball.norm: ball.radius for ball in THREAT_PRESETS.get(source, ())}.get(threat.norm)
    bound = SHARE * farthest if usual is None else TIMES * usual
    if radius >= 2 and radius.is_integer() and radius >= bound:
        known = "" if usual is None else f" and the benchmark radius is {usual:.4g}"
        raise InputError(
            f"{rule}, where images of shape {shape} are at most {farthest:.4g} apart{known}; "
            f"{way}. If so large a ball is meant, write a number that is not whole, such as "
            f"{radius + 0.01:.10g}."
        )
