"""Weather: snow, frost, fog and brightness."""

from __future__ import annotations

import numpy as np
from skimage.color import hsv2rgb, rgb2hsv

from multirobust.attacks.corruptions.blur import clipped_zoom, trail
from multirobust.attacks.corruptions.frost import frost
from multirobust.attacks.corruptions.operation import Array, Number, Operation, gray

__all__ = ["OPERATIONS", "brightness", "fog", "plasma", "snow"]


def snow(image: Array, setting: tuple[Number, ...], rng: np.random.Generator) -> Array:
    """Whiten the image, and add streaks of flakes and the same streaks turned by half.

    The setting is (mean and std of the noise that flakes come from, its magnification, the
    threshold of a flake, radius and std of the streaks, share of the image that is not whitened).
    """
    mean, std, zoom, threshold, radius, sigma, kept = setting
    flakes = clipped_zoom(rng.normal(mean, std, (*image.shape[:2], 1)), zoom)
    flakes[flakes < threshold] = 0
    stored = (np.clip(flakes, 0, 1) * 255).astype(np.uint8)
    streaks = np.rint(trail(stored, radius, sigma, rng.uniform(-135, -45))) / 255
    x = image / 255.0
    x = kept * x + (1 - kept) * np.maximum(x, gray(x) * 1.5 + 0.5)
    return (x + streaks + np.rot90(streaks, k=2)) * 255


def plasma(side: int, decay: Number, rng: np.random.Generator) -> Array:
    """Return a cloud (side, side) from 0 to 1 by the diamond-square algorithm on a torus.

    Every midpoint is the mean of its four neighbors and a uniform offset, whose range falls with
    the square of `decay` each time the spacing is halved. The side is a power of two.
    """
    cloud = np.zeros((side, side))
    step, amplitude = side, 100.0

    def midpoints(total: Array) -> Array:
        return total / 4 + amplitude * rng.uniform(-amplitude, amplitude, total.shape)

    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        centers = midpoints(pairs + np.roll(pairs, -1, axis=1))
        cloud[half::step, half::step] = centers
        horizontal = corners + np.roll(corners, -1, axis=1)
        cloud[::step, half::step] = midpoints(horizontal + centers + np.roll(centers, 1, axis=0))
        vertical = corners + np.roll(corners, -1, axis=0)
        cloud[half::step, ::step] = midpoints(vertical + centers + np.roll(centers, 1, axis=1))
        step, amplitude = half, amplitude / decay
    cloud -= cloud.min()
    return cloud / cloud.max()


def fog(image: Array, setting: tuple[Number, Number], rng: np.random.Generator) -> Array:
    """Add a cloud and scale back to the brightest pixel; the setting is density and decay."""
    density, decay = setting
    height, width = image.shape[:2]
    side = 1 << (max(height, width) - 1).bit_length()
    x = image / 255.0
    top = x.max()
    x = x + density * plasma(side, decay, rng)[:height, :width, None]
    return x * top / (top + density) * 255


def brightness(image: Array, gain: Number, rng: np.random.Generator) -> Array:
    """Add a constant to the value (HSV); a gray image is its own value."""
    if image.shape[2] == 1:
        return (image / 255.0 + gain) * 255
    hsv = rgb2hsv(image / 255.0)
    hsv[:, :, 2] = np.clip(hsv[:, :, 2] + gain, 0, 1)
    return hsv2rgb(hsv) * 255


OPERATIONS = {
    "snow": Operation(
        apply=snow,
        cifar=(
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        tiny=(
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        imagenet=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    # (share of the image, share of the ice, size of the photographs)
    "frost": Operation(
        apply=frost,
        cifar=((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        tiny=((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        imagenet=((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    ),
    "fog": Operation(
        apply=fog,
        cifar=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        tiny=((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        imagenet=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Operation(
        apply=brightness,
        cifar=(0.05, 0.1, 0.15, 0.2, 0.3),
        tiny=(0.1, 0.2, 0.3, 0.4, 0.5),
        imagenet=(0.1, 0.2, 0.3, 0.4, 0.5),
    ),
}
