"""Noise: Gaussian, shot and impulse."""

from __future__ import annotations

import numpy as np

from multirobust.attacks.corruptions.operation import Array, Number, Operation

__all__ = ["OPERATIONS", "gaussian_noise", "impulse_noise", "shot_noise"]


def gaussian_noise(image: Array, scale: Number, rng: np.random.Generator) -> Array:
    """Add normal noise of this standard deviation, on the scale [0, 1]."""
    return (image / 255.0 + rng.normal(scale=scale, size=image.shape)) * 255


def shot_noise(image: Array, photons: Number, rng: np.random.Generator) -> Array:
    """Draw every pixel from a Poisson distribution whose mean is the pixel times `photons`."""
    return rng.poisson(image / 255.0 * photons) / photons * 255


def impulse_noise(image: Array, amount: Number, rng: np.random.Generator) -> Array:
    """Set this share of the values, channel by channel, to 0 or 255 with equal chances."""
    hit = rng.random(image.shape) < amount
    salt = rng.random(image.shape) < 0.5
    return np.where(hit, np.where(salt, 255, 0), image)


OPERATIONS = {
    "gaussian_noise": Operation(
        apply=gaussian_noise,
        cifar=(0.04, 0.06, 0.08, 0.09, 0.10),
        tiny=(0.04, 0.08, 0.12, 0.15, 0.18),
        imagenet=(0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    "shot_noise": Operation(
        apply=shot_noise,
        cifar=(500, 250, 100, 75, 50),
        tiny=(250, 100, 50, 30, 15),
        imagenet=(60, 25, 12, 5, 3),
    ),
    "impulse_noise": Operation(
        apply=impulse_noise,
        cifar=(0.01, 0.02, 0.03, 0.05, 0.07),
        tiny=(0.01, 0.02, 0.05, 0.08, 0.14),
        imagenet=(0.03, 0.06, 0.09, 0.17, 0.27),
    ),
}
