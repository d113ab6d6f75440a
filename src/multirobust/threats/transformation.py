"""Threats that no pixel norm measures: rotations, fog, compression and the like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from multirobust.errors import InputError

__all__ = ["Transformation"]


@final
@dataclass(frozen=True)
class Transformation:
    """The images that a transformation of bounded strength makes of an image, within [0, 1].

    Its attack keeps the strength within the radius by construction. From the image alone it cannot
    be told afterwards; only the pixel box can.

    Args:
        name: Of the transformation: "spatial", "jpeg_linf", "fog".
        radius: Largest strength, positive, in the transformation's own unit; see its attack.

    Raises:
        InputError: If the name is empty or the radius is not a positive finite number.
    """

    name: str
    radius: float

    def __post_init__(self) -> None:
        number = isinstance(self.radius, (int, float)) and math.isfinite(self.radius)
        if not self.name or not number or self.radius <= 0:
            raise InputError(
                "Transformation: needs a name and a radius that is a positive finite number, got "
                f"{self.name!r} and {self.radius!r}; leave the attack out rather than set 0."
            )
        object.__setattr__(self, "radius", float(self.radius))
