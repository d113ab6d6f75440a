"""The learning rate as a function of how far the training is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch.optim import Optimizer

__all__ = ["Triangular"]


@final
@dataclass(frozen=True)
class Triangular:
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
        """Return the learning rate of the step after which this share of the training is done.

        Args:
            share: In [0, 1]; step n of N, counted from 0, has (n + 1) / N, and the last has rate 0.
        """
        rise, fall = share / self.peak_at, (1 - share) / (1 - self.peak_at)
        return self.peak * min(rise, fall)

    def apply(self, optimizer: Optimizer, share: float) -> float:
        """Set the learning rate of every parameter group and return it."""
        lr = self.at(share)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr
