"""The learning rate as a function of how far the training is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch.optim import Optimizer

from multirobust.config import TrainingConfig

__all__ = ["Cosine", "Piecewise", "Schedule", "Triangular", "schedule_of"]


class Schedule(ABC):
    """A learning rate for every share of the training."""

    @abstractmethod
    def at(self, share: float) -> float:
        """Return the learning rate of the step after which this share of the training is done.

        Args:
            share: In [0, 1]; step n of N, counted from 0, has (n + 1) / N.
        """

    def apply(self, optimizer: Optimizer, share: float) -> float:
        """Set the learning rate of every parameter group and return it."""
        lr = self.at(share)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr


@final
@dataclass(frozen=True)
class Triangular(Schedule):
    """Up in a straight line from zero to the peak, then down to zero at the end of the training.

    Args:
        peak: The greatest learning rate.
        peak_at: Share of the training after which it is reached, in (0, 1); the paper's code has
            2/5.

    References: Smith, Cyclical learning rates for training neural networks, WACV 2017.
    """

    peak: float
    peak_at: float = 0.4

    def at(self, share: float) -> float:
        """See `Schedule.at`."""
        rise, fall = share / self.peak_at, (1 - share) / (1 - self.peak_at)
        return self.peak * min(rise, fall)


@final
@dataclass(frozen=True)
class Cosine(Schedule):
    """From the peak down to zero along half a cosine, without restarts.

    Args:
        peak: The learning rate at the beginning.

    References: Loshchilov and Hutter, SGDR: Stochastic gradient descent with warm restarts, ICLR
    2017.
    """

    peak: float

    def at(self, share: float) -> float:
        """See `Schedule.at`."""
        return self.peak * (1 + math.cos(math.pi * share)) / 2


@final
@dataclass(frozen=True)
class Piecewise(Schedule):
    """Constant, and a tenth of it after each drop.

    Args:
        peak: The learning rate at the beginning.
        drops: Shares of the training in (0, 1); the step that reaches one has the lower rate.

    References: The published code of Croce and Hein, ICML 2022: "piecewise-ft", for fine-tuning.
    """

    peak: float
    drops: tuple[float, ...] = (1 / 3, 2 / 3)

    def at(self, share: float) -> float:
        """See `Schedule.at`; here the last step has the lowest rate, which is not zero."""
        return self.peak / 10.0 ** sum(share >= drop for drop in self.drops)


def schedule_of(config: TrainingConfig) -> Schedule:
    """Return the schedule of a training."""
    if config.schedule == "cosine":
        return Cosine(config.peak_lr)
    if config.schedule == "piecewise":
        return Piecewise(config.peak_lr, config.drops)
    return Triangular(config.peak_lr, config.peak_at)
