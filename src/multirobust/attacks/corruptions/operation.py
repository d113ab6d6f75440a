"""What a corruption is made of: a function of one image, and its published settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Number", "Operation", "gray"]

Array: TypeAlias = NDArray[Any]
Number: TypeAlias = int | float

_UP_TO = {"cifar": 45, "tiny": 119}
"""Longest side, in pixels, of the images that a table is for; halfway, as a ratio, to the next."""


@final
@dataclass(frozen=True, kw_only=True)
class Operation:
    """A corruption of one image, with one setting for each of five severities and three sizes.

    Args:
        apply: `apply(image, setting, rng)` maps uint8 (h, w, c), c being 1 or 3, to pixels of that
            shape in 0..255, of any dtype. It may go beyond; the caller clips and drops fractions.
        cifar: The settings of CIFAR-10-C, made for images of 32 pixels.
        tiny: The settings of Tiny-ImageNet-C, for 64 pixels.
        imagenet: The settings of ImageNet-C, for 224 pixels.
    """

    apply: Callable[..., Array]
    cifar: tuple[Any, ...]
    tiny: tuple[Any, ...]
    imagenet: tuple[Any, ...]

    def setting(self, severity: int, *, side: int) -> Any:
        """Return the setting of a severity, 1..5, for images whose longer side has `side` pixels.

        It is that of the published size that is nearest as a ratio: up to 45 pixels CIFAR-10-C, up
        to 119 Tiny-ImageNet-C, from 120 ImageNet-C.
        """
        if side <= _UP_TO["cifar"]:
            return self.cifar[severity - 1]
        return (self.tiny if side <= _UP_TO["tiny"] else self.imagenet)[severity - 1]

    def __call__(
        self, image: Array, severity: int, rng: np.random.Generator, **options: Any
    ) -> Array:
        """Return the corrupted image, uint8 (h, w, c): clipped, then fractions are dropped."""
        setting = self.setting(severity, side=max(image.shape[:2]))
        return np.clip(self.apply(image, setting, rng, **options), 0, 255).astype(np.uint8)


def gray(image: Array) -> Array:
    """Return the luminance (ITU-R BT.601) of an image (h, w, c), shape (h, w, 1)."""
    return image if image.shape[2] == 1 else (image @ np.array([0.299, 0.587, 0.114]))[:, :, None]
