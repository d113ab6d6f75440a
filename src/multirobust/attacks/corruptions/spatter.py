"""Spatter: drops of water that refract light at their rim, or of mud that covers."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from multirobust.attacks.corruptions.operation import Array, Number, gray

__all__ = ["distances", "edges", "equalized", "spatter"]

_WATER = (175, 238, 238)
_MUD = (63, 42, 20)
_RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
_FAR = 20.0
_COSTS = {1: 1.0, 2: round(1.4 * 2**16) / 2**16, 5: round(2.1969 * 2**16) / 2**16}
_STEPS = {
    (down, right): _COSTS[down**2 + right**2]
    for down in range(-2, 3)
    for right in range(-2, 3)
    if down**2 + right**2 in _COSTS
}
_TAN_22 = np.tan(np.pi / 8)


def spatter(image: Array, setting: tuple[Any, ...], rng: np.random.Generator) -> Array:
    """Let drops fall on the image.

    The setting is (mean and std of the noise that drops come from, the std that smooths it, the
    threshold of a drop, strength of water or smoothness of mud, "water" or "mud").
    """
    mean, std, sigma, threshold, strength, liquid = setting
    noise = rng.normal(mean, std, image.shape[:2])
    drops = ndimage.gaussian_filter(noise, sigma, mode="nearest", truncate=4)
    drops[drops < threshold] = 0
    x = image / 255.0
    if liquid == "water":
        return (x + _highlights(drops)[:, :, None] * strength * _color(_WATER, x)) * 255
    cover = ndimage.gaussian_filter(
        (drops > threshold).astype(np.float64), strength, mode="nearest", truncate=4
    )
    cover[cover < 0.8] = 0
    return (x * (1 - cover[:, :, None]) + cover[:, :, None] * _color(_MUD, x)) * 255


def _color(rgb: tuple[int, int, int], x: Array) -> Array:
    """Return a color on the scale [0, 1], as luminance for a gray image."""
    color = np.array(rgb)[None, None] / 255
    return color if x.shape[2] == 3 else gray(color)


def _highlights(drops: Array) -> Array:
    """Return how strongly drops reflect at each pixel, from 0 to 1: a relief of their rims."""
    stored = np.clip(drops * 255, 0, 255).astype(np.uint8)
    rims = edges(stored, low=50, high=150)
    smooth = _mean_of_nine(distances(rims)).astype(np.float32).astype(np.uint8)
    levels = equalized(smooth).astype(np.int64)
    relief = np.clip(ndimage.correlate(levels, _RELIEF, mode="mirror"), 0, 255)
    soft = np.rint(_mean_of_nine(relief))
    light = stored * soft
    return light / max(light.max(), 1)


def _mean_of_nine(image: Array) -> Array:
    """Return the mean of each pixel and its eight neighbors, float64, without running sums.

    Those would turn a constant 20 into 19.999..., which loses a level where fractions are dropped.
    """
    return ndimage.correlate(image.astype(np.float64), np.ones((3, 3)), mode="mirror") / 9


def edges(image: Array, *, low: Number, high: Number) -> Array:
    """Return Canny's edges of a uint8 image (h, w), bool, without smoothing it first.

    Gradients are Sobel's and their size is |gx| + |gy|, as in the library that the published code
    uses. Edges are ridges of that size above `low` that connect to one above `high`.
    """
    gx, gy = (ndimage.sobel(image.astype(np.int64), axis=axis, mode="nearest") for axis in (1, 0))
    size = np.abs(gx) + np.abs(gy)
    around = np.pad(size, 1)
    height, width = image.shape

    def at(down: int, right: int) -> Array:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat = np.abs(gy) < _TAN_22 * np.abs(gx)
    steep = np.abs(gx) < _TAN_22 * np.abs(gy)
    falling = np.sign(gx) * np.sign(gy) >= 0
    ridge = np.select(
        [flat, steep, falling],
        [
            (size > at(0, -1)) & (size >= at(0, 1)),
            (size > at(-1, 0)) & (size >= at(1, 0)),
            (size > at(-1, -1)) & (size > at(1, 1)),
        ],
        (size > at(-1, 1)) & (size > at(1, -1)),
    )
    weak = ridge & (size > low)
    return ndimage.binary_propagation(weak & (size > high), np.ones((3, 3)), mask=weak)


def distances(rims: Array) -> Array:
    """Return the distance of each pixel (h, w) to the nearest rim, at most 20, by local steps.

    Steps to the side cost 1, diagonal ones 1.4 and knight's moves 2.1969, both rounded to
    16 binary places.
    """
    height, width = rims.shape
    near = np.where(rims, 0, _FAR)
    while True:
        around = np.pad(near, 2, constant_values=_FAR)
        shorter = near
        for (down, right), cost in _STEPS.items():
            moved = around[2 + down : 2 + down + height, 2 + right : 2 + right + width]
            shorter = np.minimum(shorter, moved + cost)
        if np.array_equal(shorter, near):
            return near
        near = shorter


def equalized(image: Array) -> Array:
    """Return a uint8 image (h, w) whose histogram is spread over 0..255, the lowest level at 0."""
    counts = np.bincount(image.ravel(), minlength=256)
    lowest = counts[image.min()]
    if lowest == image.size:
        return image
    scale = np.float32(255) / np.float32(image.size - lowest)
    spread = (np.cumsum(counts) - lowest).astype(np.float32) * scale
    return np.rint(np.clip(spread, 0, 255)).astype(np.uint8)[image]
