"""Digital: contrast, elastic transform, pixelate and JPEG compression."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from multirobust.attacks.corruptions.operation import Array, Number, Operation

__all__ = ["OPERATIONS", "contrast", "elastic_transform", "jpeg_compression", "pixelate"]


def contrast(image: Array, kept: Number, rng: np.random.Generator) -> Array:
    """Scale the distance of every pixel from the mean of its channel."""
    x = image / 255.0
    means = x.mean(axis=(0, 1), keepdims=True)
    return ((x - means) * kept + means) * 255


def elastic_transform(
    image: Array, setting: tuple[Number, Number, Number], rng: np.random.Generator
) -> Array:
    """Apply a random affine map, then move every pixel by a smooth random field.

    The setting is, in units of the shorter side, the strength of the field, the std that smooths
    it, and the greatest move of the three corners that define the affine map.
    """
    height, width = image.shape[:2]
    strength, sigma, corner = (min(height, width) * value for value in setting)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    x = _affine(image / 255.0, rng.uniform(-corner, corner, (3, 2)), rows, columns)
    right, down = (
        ndimage.gaussian_filter(
            rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3
        )
        for _ in range(2)
    )
    return _sampled(x, rows + strength * down, columns + strength * right, mode="reflect") * 255


def _affine(image: Array, moves: Array, rows: Array, columns: Array) -> Array:
    """Move three corners of the middle square by `moves`, (x, y) each, and the image with them."""
    height, width = image.shape[:2]
    center, reach = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = center + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    # The map from new to old positions takes each moved corner back to where it was.
    moved = np.column_stack([corners + moves, np.ones(3)])
    back = np.linalg.solve(moved, corners)
    old = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back
    return _sampled(image, old[..., 1], old[..., 0], mode="mirror")


def _sampled(image: Array, rows: Array, columns: Array, *, mode: str) -> Array:
    """Return the image, linearly interpolated at these positions (h, w)."""
    channels = [
        ndimage.map_coordinates(image[:, :, c], (rows, columns), order=1, mode=mode)
        for c in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)


def jpeg_compression(image: Array, quality: int, rng: np.random.Generator) -> Array:
    """Store as JPEG of this quality, with Pillow's default subsampling, and read again."""
    stored = io.BytesIO()
    _pillow(image).save(stored, "JPEG", quality=quality)
    with Image.open(stored) as opened:
        return np.asarray(opened).reshape(image.shape)


def pixelate(image: Array, share: Number, rng: np.random.Generator) -> Array:
    """Resize to this share of each side and back, both by boxes."""
    height, width = image.shape[:2]
    small = _pillow(image).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)).reshape(image.shape)


def _pillow(image: Array) -> Image.Image:
    return Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])


_SLIP = 244 / 224
"""The code of ImageNet-C has 244 where it means 224 pixels; its data have that, and so has this."""
OPERATIONS = {
    "contrast": Operation(
        apply=contrast,
        cifar=(0.75, 0.5, 0.4, 0.3, 0.15),
        tiny=(0.4, 0.3, 0.2, 0.1, 0.05),
        imagenet=(0.4, 0.3, 0.2, 0.1, 0.05),
    ),
    "elastic_transform": Operation(
        apply=elastic_transform,
        cifar=(
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
        tiny=(
            (0, 0, 0.08),
            (0.05, 0.3, 0.06),
            (0.1, 0.08, 0.06),
            (0.1, 0.03, 0.03),
            (0.16, 0.03, 0.02),
        ),
        imagenet=(
            (2 * _SLIP, 0.7 * _SLIP, 0.1 * _SLIP),
            (2 * _SLIP, 0.08 * _SLIP, 0.2 * _SLIP),
            (0.05 * _SLIP, 0.01 * _SLIP, 0.02 * _SLIP),
            (0.07 * _SLIP, 0.01 * _SLIP, 0.02 * _SLIP),
            (0.12 * _SLIP, 0.01 * _SLIP, 0.02 * _SLIP),
        ),
    ),
    "pixelate": Operation(
        apply=pixelate,
        cifar=(0.95, 0.9, 0.85, 0.75, 0.65),
        tiny=(0.9, 0.8, 0.7, 0.6, 0.5),
        imagenet=(0.6, 0.5, 0.4, 0.3, 0.25),
    ),
    "jpeg_compression": Operation(
        apply=jpeg_compression,
        cifar=(80, 65, 58, 50, 40),
        tiny=(65, 58, 50, 40, 25),
        imagenet=(25, 18, 15, 10, 7),
    ),
}
