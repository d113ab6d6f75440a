"""How much of the training each of several attacks gets, and what decides it.

All rules hear the same sums over the images of a batch, attack by attack, and keep what they learn
in buffers that change in place, without waiting for the device.
"""

from __future__ import annotations

import abc
import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from multirobust.errors import InputError

__all__ = [
    "EqualShares",
    "ErrorShares",
    "Shares",
    "Sums",
    "in_open",
]


class Sums(NamedTuple):
    """Over the images of one batch on all processes, for each attack; all (k,), float64.

    Args:
        loss: Cross-entropy, in nats.
        correct: Images that are classified right.
        seen: Images.
        weight: 1 / (k p) of each image, p its attack's probability when it was drawn.
    """

    loss: Tensor
    correct: Tensor
    seen: Tensor
    weight: Tensor


class Shares(nn.Module, abc.ABC):
    """The probabilities of several attacks: (1 - floor) w_k / sum_j w_j + floor / k.

    Args:
        count: Number of attacks, k.
        floor: Share of the training that stays uniform, in [0, 1].

    Raises:
        InputError: If a number is out of range.
    """

    def __init__(self, count: int, *, floor: float):
        super().__init__()
        if count < 1:
            raise InputError(f"{type(self).__name__}: count must be at least 1, got {count!r}.")
        if not 0 <= floor <= 1:
            raise InputError(
                f"{type(self).__name__}: floor must be a share in [0, 1], got {floor!r}."
            )
        self.count, self.floor = count, floor

    @abc.abstractmethod
    def weights(self) -> list[float]:
        """Return w_k, at least 0; all 0 means that nothing is known. May wait for the device."""

    def probabilities(self) -> list[float]:
        """Return how probable each attack is; they sum to one, and none is below floor / k."""
        weights = self.weights()
        total = math.fsum(weights)
        if not total > 0:
            return [1 / self.count] * self.count
        return [(1 - self.floor) * w / total + self.floor / self.count for w in weights]

    def observe(self, sums: Sums) -> None:
        """Learn from a batch; by default nothing."""

    def probe(self) -> int:
        """Return on how many images of this batch all attacks are to be tried; by default none.

        Called once a batch.
        """
        return 0

    def observe_probe(self, values: Tensor, images: Tensor) -> None:
        """Learn from a probe; by default nothing.

        Called in every step, so that it can be part of a recorded one.

        Args:
            values: Sums of the Shapley values of the probed images, (k,).
            images: How many were probed, a scalar; 0 means that there was no probe.
        """


@final
class EqualShares(Shares):
    """1 / k each.

    Args:
        count: Number of attacks.
    """

    def __init__(self, count: int):
        super().__init__(count, floor=0.0)

    def weights(self) -> list[float]:
        """See `Shares.weights`."""
        return [1.0] * self.count


@final
class ErrorShares(Shares):
    """w_k = e_k^power, e_k the running error of the images of attack k.

    Uniform until each attack has been used. The rule of E-AT is rate None, power 1, floor 0.

    Args:
        count: Number of attacks.
        rate: Share of a moving average that the newest batch gets, with the bias of its start
            removed; None averages over all images of the run.
        power: Exponent of the error; 0 is uniform.
        floor: See `Shares`.

    References: Croce and Hein, Adversarial robustness against multiple and single lp-threat models
    via quick fine-tuning of robust classifiers, ICML 2022.
    """

    correct: Tensor
    seen: Tensor

    def __init__(
        self, count: int, *, rate: float | None = 0.05, power: float = 2.0, floor: float = 0.15
    ):
        super().__init__(count, floor=floor)
        if rate is not None:
            in_open("ErrorShares", "rate", rate)
        if not 0 <= power < math.inf:
            raise InputError(
                f"ErrorShares: power must be a finite number of at least 0, got {power!r}."
            )
        self.rate, self.power = rate, power
        self.register_buffer("correct", torch.zeros(count))
        self.register_buffer("seen", torch.zeros(count))

    def weights(self) -> list[float]:
        """See `Shares.weights`."""
        correct, seen = torch.stack((self.correct, self.seen)).double().tolist()
        if not all(seen):
            return [1.0] * self.count
        return [max(1 - c / s, 0.0) ** self.power for c, s in zip(correct, seen, strict=True)]

    @torch.no_grad()
    def observe(self, sums: Sums) -> None:
        """See `Shares.observe`."""
        if self.rate is None:
            self.correct.add_(sums.correct)
            self.seen.add_(sums.seen)
            return
        used = (sums.seen > 0).to(self.seen.dtype)
        mean = sums.correct / sums.seen.clamp(min=1)
        self.correct.add_(self.rate * used * (mean.to(used.dtype) - self.correct))
        self.seen.add_(self.rate * used * (1 - self.seen))


def in_open(owner: str, name: str, value: float) -> None:
    """Raise an InputError unless the value is in (0, 1]."""
    if not 0 < value <= 1:
        raise InputError(f"{owner}: {name} must be a share in (0, 1], got {value!r}.")
