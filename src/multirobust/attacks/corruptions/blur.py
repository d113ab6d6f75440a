"""Blur: defocus, glass, motion and zoom."""

from __future__ import annotations

import functools

import numpy as np
from scipy import ndimage

from multirobust.attacks.corruptions.operation import Array, Number, Operation

__all__ = [
    "OPERATIONS",
    "blurred",
    "clipped_zoom",
    "defocus_blur",
    "disk",
    "glass_blur",
    "motion_blur",
    "trail",
    "zoom_blur",
]


def blurred(image: Array, sigma: Number) -> Array:
    """Return the image (h, w, c) after a normal blur within channels; the border is repeated."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4)


@functools.cache
def disk(radius: Number, alias_blur: Number) -> Array:
    """Return a disk that sums to 1, then softened by a small normal blur of std `alias_blur`.

    In float32, as published. The grid of 17 x 17, or of the disk if that is larger, is mirrored at
    its rim, so that disks of radius 8 and more gain weight: their images are 1 % brighter.
    """
    reach = 8 if radius <= 8 else int(radius)
    offsets = np.arange(-reach, reach + 1)
    kernel = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    kernel /= kernel.sum()
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    softening = np.exp(-(taps**2) / (2 * alias_blur**2))
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, softening / softening.sum(), axis, mode="mirror")
    used = min(reach, int(radius) + len(taps) // 2)
    return kernel[reach - used : reach + used + 1, reach - used : reach + used + 1]


def defocus_blur(image: Array, setting: tuple[Number, Number], rng: np.random.Generator) -> Array:
    """Average over a disk; the setting is its radius and the std that softens its rim."""
    kernel = disk(*setting)[:, :, None]
    return ndimage.correlate(image / 255.0, kernel, mode="mirror") * 255


def glass_blur(image: Array, setting: tuple[Number, int, int], rng: np.random.Generator) -> Array:
    """Blur, replace pixels by random neighbors one after the other, and blur again.

    The published code means to swap two pixels, but as it assigns through views it copies one over
    the other; its data have that, and so has this. The setting is (std of the blur, greatest
    offset, rounds); offsets lie in -greatest..greatest - 1, also as published.
    """
    sigma, reach, rounds = setting
    height, width, channels = image.shape
    soft = (blurred(image / 255.0, sigma) * 255).astype(np.uint8)
    rows = np.arange(height - reach, reach, -1)
    columns = np.arange(width - reach, reach, -1)
    offsets = rng.integers(-reach, reach, (rounds, len(rows), len(columns), 2))
    target = rows[:, None] * width + columns
    origin = target + offsets[..., 1] * width + offsets[..., 0]
    source = list(range(height * width))
    targets = target.ravel().tolist()
    for order in origin.reshape(rounds, -1).tolist():
        for pixel, neighbor in zip(targets, order, strict=True):
            source[pixel] = source[neighbor]
    moved = soft.reshape(-1, channels)[source].reshape(image.shape)
    return blurred(moved / 255.0, sigma) * 255


def trail(image: Array, radius: Number, sigma: Number, angle: Number) -> Array:
    """Average along a ray, with the right half of a normal density as weights.

    The samples are whole pixels along the ray, and beyond the border the outermost pixel: this is
    the motion blur of ImageMagick, which the published code calls.

    Args:
        image: Any values, shape (h, w, c).
        radius: The ray has 2 ceil(radius) + 1 samples.
        sigma: Standard deviation of the weights, in pixels.
        angle: Direction of the ray in degrees, from the right toward the lower edge.
    """
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    down = np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    height, width = image.shape[:2]
    reach = steps[-1]
    around = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros(image.shape)
    for weight, dy, dx in zip(weights, down + reach, right + reach, strict=True):
        total += weight * around[dy : dy + height, dx : dx + width]
    return total


def motion_blur(image: Array, setting: tuple[Number, Number], rng: np.random.Generator) -> Array:
    """Blur along a ray within 45 degrees of the horizontal; the setting is radius and std."""
    return np.rint(trail(image, *setting, angle=rng.uniform(-45, 45)))


@functools.lru_cache(maxsize=512)
def _zoom_matrix(side: int, factor: Number) -> Array:
    """Return the matrix that magnifies the middle of a line of `side` pixels to `side` pixels."""
    kept = int(np.ceil(side / factor))
    start = (side - kept) // 2
    zoomed = ndimage.zoom(np.eye(side)[start : start + kept], (factor, 1), order=1)
    trim = (len(zoomed) - side) // 2
    return zoomed[trim : trim + side]


def clipped_zoom(image: Array, factor: Number) -> Array:
    """Return the middle of an image (h, w, c), magnified linearly to its old size."""
    rows, columns = (_zoom_matrix(side, float(factor)) for side in image.shape[:2])
    return np.einsum("ij,jkc,lk->ilc", rows, image, columns, optimize=True)


def zoom_blur(image: Array, setting: tuple[Number, Number], rng: np.random.Generator) -> Array:
    """Average the image and its magnifications; the setting is their upper end and step."""
    x = image / 255.0
    factors = np.arange(1, *setting)
    total = x + sum(clipped_zoom(x, factor) for factor in factors)
    return total / (len(factors) + 1) * 255


_ZOOMS = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
OPERATIONS = {
    "defocus_blur": Operation(
        apply=defocus_blur,
        cifar=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        tiny=((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        imagenet=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": Operation(
        apply=glass_blur,
        cifar=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        tiny=((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        imagenet=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": Operation(
        apply=motion_blur,
        cifar=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        tiny=((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        imagenet=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": Operation(
        apply=zoom_blur,
        cifar=_ZOOMS,
        tiny=_ZOOMS,
        imagenet=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
}
