"""What the unforeseen attacks share: published radii, number of steps and step sizes."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multirobust.attacks.parametric import ParametricAttack
from multirobust.errors import InputError
from multirobust.ranks import drawn
from multirobust.types import Images

__all__ = ["STEP_LENGTH", "Unforeseen", "check_channels", "uniform"]

STEP_LENGTH = math.sqrt(0.001)
"""What sqrt(steps) divides where the step does not depend on the radius: 0.002236 in 200 steps."""


@dataclass(frozen=True, kw_only=True)
class Unforeseen(ParametricAttack, abc.ABC):
    """An attack of Kang et al. with its published radii, number of steps and rule of steps."""

    severities: ClassVar[tuple[float, ...]]
    """The published radii, weakest first: `severities[0]` is severity 1."""

    steps: int = 200

    @property
    @abc.abstractmethod
    def step_size(self) -> float:
        """Length of a step in the unit of the parameters; it falls as 1 / sqrt(steps)."""


def uniform(x: Images, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return numbers uniform in [0, 1), one such shape an image, of dtype and device of x."""
    options = {"dtype": x.dtype, "device": x.device}
    return drawn(torch.rand, (len(x), *shape), generator=generator, **options)


def check_channels(x: Images, attack: str) -> None:
    """Raise unless the images are gray or color.

    Raises:
        InputError: If they have neither one channel nor three.
    """
    if x.shape[1] not in (1, 3):
        raise InputError(
            f"{attack}: x must have 1 channel (gray) or 3 (red, green, blue), got shape "
            f"{tuple(x.shape)}; leave this attack out for other images."
        )
