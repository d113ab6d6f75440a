"""Frost: photographs of ice in front of the image, or a computed texture in their place."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from multirobust.attacks.corruptions.blur import blurred, trail
from multirobust.attacks.corruptions.operation import Array, Number, gray
from multirobust.errors import DataError

__all__ = ["PHOTOGRAPHS", "crystals", "frost", "photograph"]

PHOTOGRAPHS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The published files that the published code uses; it never draws the sixth."""

_PANES = (
    ((78, 149, 166), 18),
    ((201, 205, 214), 21),
    ((201, 205, 214), 21),
    ((138, 153, 165), 29),
    ((112, 123, 135), 43),
)
"""Mean color and contrast (std) in 0..255 of each photograph, which the computed texture has."""
_LIGHT = 0.7
"""Contrast of the slow variation of light, where long and short needles have 1 each."""


def frost(
    image: Array,
    setting: tuple[Number, Number, Number],
    rng: np.random.Generator,
    *,
    source: str,
) -> Array:
    """Add ice to the image.

    Args:
        image: Pixels in 0..255, shape (h, w, c).
        setting: Share of the image, share of the ice, and the factor that photographs are resized
            by.
        rng: Chooses one of five photographs and a part of it, or the crystals.
        source: Folder of the photographs, or "procedural".

    Raises:
        DataError: If a photograph cannot be read or is smaller than the image.
    """
    kept, share, scale = setting
    height, width = image.shape[:2]
    if source == "procedural":
        ice = crystals(height, width, rng)
    else:
        ice = _part(Path(source) / PHOTOGRAPHS[rng.integers(5)], scale, height, width, rng)
    if image.shape[2] == 1:
        ice = gray(ice)
    return kept * image + share * ice


def crystals(height: int, width: int, rng: np.random.Generator) -> Array:
    """Return a texture of needles (h, w, 3) in 0..255, in the colors of one of the photographs.

    Bright trails in random directions, long ones and short ones, of which the brightest counts at
    each pixel, on light that varies slowly.
    """
    side = max(height, width)
    light = ndimage.gaussian_filter(rng.normal(size=(height, width)), side / 8, mode="wrap")
    field = _LIGHT * _standardized(light)
    for length, directions in ((side / 5, 4), (side / 12, 3)):
        margin = 2 * int(np.ceil(length))
        trails = []
        for angle in rng.uniform(0, 360, directions):
            seeds = rng.normal(size=(height + 2 * margin, width + 2 * margin, 1)) ** 3
            seeds = blurred(seeds, side / 160)
            trails.append(trail(seeds, length, length / 2, angle))
        layer = np.max(trails, axis=0)[margin:-margin, margin:-margin, 0]
        field += _standardized(layer)
    color, contrast = _PANES[rng.integers(len(_PANES))]
    return np.clip(np.array(color) + contrast * _standardized(field)[:, :, None], 0, 255)


def _standardized(field: Array) -> Array:
    """Return the field with mean 0 and standard deviation 1."""
    return (field - field.mean()) / field.std()


@functools.lru_cache(maxsize=16)
def photograph(path: Path, scale: Number) -> Array:
    """Return a photograph, uint8 (h, w, 3), resized by linear interpolation without smoothing.

    Raises:
        DataError: If the file is missing or no image.
    """
    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(
            f"frost_images: must be a folder that holds {', '.join(PHOTOGRAPHS)}, and {path} "
            f"cannot be read ({error}); copy them there, or leave frost_images out for a computed "
            "texture."
        ) from error
    if scale == 1:
        return pixels
    rows, columns = (
        (np.arange(round(side * scale)) + 0.5) / scale - 0.5 for side in pixels.shape[:2]
    )
    grid = np.meshgrid(rows, columns, indexing="ij")
    channels = [
        ndimage.map_coordinates(pixels[:, :, c].astype(float), grid, order=1, mode="nearest")
        for c in range(3)
    ]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _part(path: Path, scale: Number, height: int, width: int, rng: np.random.Generator) -> Array:
    """Return a random part of a photograph of the size of the image."""
    ice = photograph(path, scale)
    room = ice.shape[0] - height, ice.shape[1] - width
    if min(room) < 1:
        raise DataError(
            f"frost_images: {path}, resized by {scale}, must be larger than the images, "
            f"{height} x {width}, got {ice.shape[0]} x {ice.shape[1]}; leave frost_images out for "
            "a computed texture of any size."
        )
    top, left = rng.integers(room[0]), rng.integers(room[1])
    return ice[top : top + height, left : left + width]
