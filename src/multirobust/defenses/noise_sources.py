"""Noise that nothing learns, for the third view of the consistency loss."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from multirobust.config import DefenseConfig
from multirobust.ranks import drawn
from multirobust.threats import (
    BALL_MAPS,
    BallMap,
    HardProjection,
    MixedThreat,
    Threat,
    mapped_into,
)

__all__ = ["GaussianNoise", "NoiseSource", "UniformNoise", "noise_source", "steps_left"]

_META_PASSES = 5
"""Forward and backward passes of one step of the generator, in batches."""


class NoiseSource(abc.ABC):
    """Draws noisy images within a threat: a frozen value."""

    @abc.abstractmethod
    def __call__(
        self, threat: Threat | MixedThreat, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return noisy images (b, c, h, w) within the threat around x and within [0, 1]."""


@final
@dataclass(frozen=True)
class GaussianNoise(NoiseSource):
    """Standard normal noise, brought into the ball by a map.

    Args:
        ball_map: The projection leaves nearly all images on the boundary.
    """

    ball_map: BallMap = field(default_factory=HardProjection)

    def __call__(
        self, threat: Threat | MixedThreat, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """See `NoiseSource`."""
        noise = drawn(_normal, x.shape, generator=generator, like=x)
        return mapped_into(self.ball_map, threat, noise, x)


@final
@dataclass(frozen=True)
class UniformNoise(NoiseSource):
    """A point drawn uniformly from the ball, clipped to [0, 1]. See `Threat.sample`."""

    def __call__(
        self, threat: Threat | MixedThreat, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """See `NoiseSource`."""
        return threat.sample(x, generator)


def noise_source(config: DefenseConfig) -> NoiseSource | None:
    """Return what stands in for the learned noise in an ablation, None for two views."""
    gaussian = GaussianNoise(BALL_MAPS[config.noise_map])
    return {"gaussian": gaussian, "uniform_in_ball": UniformNoise(), "none": None}[config.noise]


def steps_left(config: DefenseConfig, restarts: int = 1) -> int:
    """Return the attack steps that the passes saved against published MNG-AC pay for, rounded up.

    An attack step is one forward and one backward pass for each restart; the third view is one and
    one, the generator's step two and three.

    Args:
        config: Says what the third view is and how often the generator steps.
        restarts: How often an attack starts.
    """
    learned = config.noise == "learned"
    steps = config.meta_share / config.meta_every if learned and config.meta_every else 0.0
    views = 2 * (config.noise == "none")
    return math.ceil((_META_PASSES * (1 - steps) + views) / (2 * restarts))


def _normal(shape: tuple[int, ...], *, generator: torch.Generator, like: Tensor) -> Tensor:
    return like.new_empty(shape).normal_(generator=generator)
