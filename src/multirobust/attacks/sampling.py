"""Which attack a training step uses."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import nn

from multirobust.attacks.base import Attack
from multirobust.errors import InputError

__all__ = ["Always", "Sampler", "UniformSampler"]


class Sampler(nn.Module, abc.ABC):
    """Chooses one attack of a set for each batch.

    Its random state and its counts are part of the state dict, so that a resumed run draws what the
    undisturbed run would have drawn.

    Args:
        attacks: The perturbation set S of Eq. 5.
        seed: Of its own random numbers, which live on the CPU: a draw never waits for a device.
    """

    def __init__(self, attacks: Sequence[Attack], *, seed: int = 0):
        super().__init__()
        if not attacks:
            raise InputError("Sampler: attacks must name at least one attack, got none.")
        self.attacks = tuple(attacks)
        self.draws = [0] * len(self.attacks)
        self._random = torch.Generator().manual_seed(seed)

    @abc.abstractmethod
    def probabilities(self) -> list[float]:
        """Return how probable each attack is in the next draw; they sum to one."""

    def draw(self) -> Attack:
        """Return the attack of the next batch and count it."""
        weights = torch.tensor(self.probabilities(), dtype=torch.float64)
        point = torch.rand((), dtype=torch.float64, generator=self._random)
        index = int(torch.searchsorted(weights.cumsum(0), point, right=True))
        index = min(index, len(self.attacks) - 1)
        self.draws[index] += 1
        return self.attacks[index]

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the state dict needs besides parameters: random state and counts."""
        return {"random": self._random.get_state(), "draws": list(self.draws)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self._random.set_state(state["random"].cpu())
        self.draws = list(state["draws"])

    def extra_repr(self) -> str:
        """Name the attacks."""
        return ", ".join(repr(attack) for attack in self.attacks)


@final
class UniformSampler(Sampler):
    """Each attack with probability 1 / n, once a batch (Eq. 5)."""

    def probabilities(self) -> list[float]:
        """See `Sampler.probabilities`."""
        return [1 / len(self.attacks)] * len(self.attacks)


@final
class Always(Sampler):
    """The one attack there is.

    Args:
        attack: The attack.
    """

    def __init__(self, attack: Attack):
        super().__init__((attack,))

    def probabilities(self) -> list[float]:
        """See `Sampler.probabilities`."""
        return [1.0]
