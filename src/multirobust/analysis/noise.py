"""Figure 5: what the noise generator of a defense makes, and how much it depends on the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from multirobust.attacks.base import check_batch
from multirobust.defenses import ANT, Defense
from multirobust.errors import InputError
from multirobust.models import NoiseGenerator
from multirobust.threats import BallMap, HardProjection, Threat
from multirobust.types import Images

__all__ = ["Augmented", "GeneratedNoise", "amplified", "generated_noise"]


@final
@dataclass(frozen=True, eq=False)
class Augmented:
    """The images with the noise, brought into one threat (Eq. 6) as in training.

    Args:
        images: Shape (n, c, h, w), in [0, 1].
        used: Mean distance to the clean images in the norm of the threat, over its radius; 1 is the
            boundary of the ball.
        live: Share of the generator's outputs through which a gradient passes into the ball.
    """

    images: np.ndarray
    used: float
    live: float


@final
@dataclass(frozen=True, eq=False)
class GeneratedNoise:
    """Noise for some images.

    Args:
        images: Clean images, float, shape (n, c, h, w).
        noise: The generator's output for each, before any projection, same shape.
        augmented: By threat.
        over_images: Variance of a pixel of the noise over the images at equal z, mean over pixels
            and z.
        over_z: Variance of a pixel of the noise over z at equal image, mean over pixels and images.
    """

    images: np.ndarray
    noise: np.ndarray
    augmented: dict[str, Augmented]
    over_images: float
    over_z: float

    @property
    def dependence(self) -> float:
        """Share of the noise's variance that is due to the image, in [0, 1].

        0 for a generator that does not look at the image, 1 for one that ignores z.
        """
        total = self.over_images + self.over_z
        return self.over_images / total if total > 0 else 0.0


@torch.no_grad()
def generated_noise(
    defense: Defense[Any],
    x: Images,
    threats: Mapping[str, Threat],
    *,
    draws: int = 32,
    generator: torch.Generator | None = None,
) -> GeneratedNoise:
    """Return the noise of a defense for images, and how it ends up within each threat.

    All threats get the same noise. That of `ANT` is first scaled to its sphere, as in training.
    Variances are unbiased estimates over the images and over draws of z.

    Args:
        defense: One that has learned a generator, such as `MNGAC` or `ANT`.
        x: Two images or more (n, c, h, w) in [0, 1], on the device of the generator.
        threats: By name.
        draws: Draws of z for the variances, at least 2.
        generator: Source of z; without one, a fresh one with seed 0.

    Raises:
        InputError: If the defense has no noise generator, or an argument breaks these rules.

    References: Madaan, Shin and Hwang, ICML 2021, Figure 5.
    """
    check_batch(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    network = getattr(defense, "noise", None)
    if not isinstance(network, NoiseGenerator):
        raise InputError(
            f"defense must have learned a noise generator, got {type(defense).__name__}; use a run "
            "of mng_ac or ant."
        )
    if len(x) < 2 or draws < 2:
        raise InputError(
            f"x and draws must be two or more for a variance, got {len(x)} images, {draws} draws."
        )
    generator = generator or torch.Generator(x.device).manual_seed(0)
    to_ball: BallMap = getattr(defense, "ball_map", HardProjection())
    noise = _scaled(defense, network(network.draw(x, generator), x))
    z = network.draw(x.new_empty((draws, *x.shape[1:])), generator)
    table = torch.stack(
        [_scaled(defense, network(each.expand(len(x), -1, -1, -1), x)) for each in z]
    ).double()
    return GeneratedNoise(
        images=_array(x),
        noise=_array(noise),
        augmented={n: _augmented(to_ball, t, noise, x, generator) for n, t in threats.items()},
        over_images=float(table.var(dim=1).mean()),
        over_z=float(table.var(dim=0).mean()),
    )


def amplified(noise: np.ndarray, factor: float) -> np.ndarray:
    """Return signed noise as pixels in [0, 1]: gray is none, brighter is more, darker is less.

    Args:
        noise: Any shape.
        factor: A noise of 1 / (2 factor) is white.
    """
    return np.clip(0.5 + factor * noise, 0, 1)


def _scaled(defense: Defense[Any], noise: Tensor) -> Tensor:
    """Return the noise that the defense trains with, before its projection."""
    if not isinstance(defense, ANT):
        return noise
    length = torch.linalg.vector_norm(noise.flatten(1), dim=1)[:, None, None, None]
    return noise * defense.threat.radius / torch.where(length > 0, length, 1)


def _augmented(
    to_ball: BallMap, threat: Threat, noise: Tensor, x: Tensor, generator: torch.Generator
) -> Augmented:
    """Bring noise into the ball, and pull a random gradient back."""
    with torch.enable_grad():
        leaf = noise.detach().requires_grad_()
        images = to_ball(threat, leaf, x)
        gradient = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        (back,) = torch.autograd.grad(images, leaf, gradient.to(images.dtype))
    used = threat.distance(images.detach(), x).mean() / threat.radius
    return Augmented(_array(images), float(used), float((back != 0).double().mean()))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
