"""Extra: speckle noise, Gaussian blur, spatter and saturation."""

from __future__ import annotations

import numpy as np
from skimage.color import hsv2rgb, rgb2hsv

from multirobust.attacks.corruptions.blur import blurred
from multirobust.attacks.corruptions.operation import Array, Number, Operation
from multirobust.attacks.corruptions.spatter import spatter

__all__ = ["OPERATIONS", "gaussian_blur", "saturate", "speckle_noise"]


def speckle_noise(image: Array, scale: Number, rng: np.random.Generator) -> Array:
    """Add normal noise whose standard deviation is the pixel times `scale`."""
    x = image / 255.0
    return (x + x * rng.normal(scale=scale, size=x.shape)) * 255


def gaussian_blur(image: Array, sigma: Number, rng: np.random.Generator) -> Array:
    """Blur with a normal density of this standard deviation, in pixels."""
    return blurred(image / 255.0, sigma) * 255


def saturate(image: Array, setting: tuple[Number, Number], rng: np.random.Generator) -> Array:
    """Multiply the saturation (HSV) and add to it; a gray image has none and stays as it is."""
    if image.shape[2] == 1:
        return image
    factor, gain = setting
    hsv = rgb2hsv(image / 255.0)
    hsv[:, :, 1] = np.clip(hsv[:, :, 1] * factor + gain, 0, 1)
    return hsv2rgb(hsv) * 255


OPERATIONS = {
    "speckle_noise": Operation(
        apply=speckle_noise,
        cifar=(0.06, 0.1, 0.12, 0.16, 0.2),
        tiny=(0.15, 0.2, 0.25, 0.3, 0.35),
        imagenet=(0.15, 0.2, 0.35, 0.45, 0.6),
    ),
    "gaussian_blur": Operation(
        apply=gaussian_blur,
        cifar=(0.4, 0.6, 0.7, 0.8, 1),
        tiny=(0.5, 0.75, 1, 1.25, 1.5),
        imagenet=(1, 2, 3, 4, 6),
    ),
    "spatter": Operation(
        apply=spatter,
        cifar=(
            (0.62, 0.1, 0.7, 0.7, 0.5, "water"),
            (0.65, 0.1, 0.8, 0.7, 0.5, "water"),
            (0.65, 0.3, 1, 0.69, 0.5, "water"),
            (0.65, 0.1, 0.7, 0.69, 0.6, "mud"),
            (0.65, 0.1, 0.5, 0.68, 0.6, "mud"),
        ),
        tiny=(
            (0.62, 0.1, 0.7, 0.7, 0.6, "water"),
            (0.65, 0.1, 0.8, 0.7, 0.6, "water"),
            (0.65, 0.3, 1, 0.69, 0.6, "water"),
            (0.65, 0.1, 0.7, 0.68, 0.6, "mud"),
            (0.65, 0.1, 0.5, 0.67, 0.6, "mud"),
        ),
        imagenet=(
            (0.65, 0.3, 4, 0.69, 0.6, "water"),
            (0.65, 0.3, 3, 0.68, 0.6, "water"),
            (0.65, 0.3, 2, 0.68, 0.5, "water"),
            (0.65, 0.3, 1, 0.65, 1.5, "mud"),
            (0.67, 0.4, 1, 0.65, 1.5, "mud"),
        ),
    ),
    "saturate": Operation(
        apply=saturate,
        cifar=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        tiny=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        imagenet=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
}
