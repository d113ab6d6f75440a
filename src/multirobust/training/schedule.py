"""The learning rate as a function of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch.optim import Optimizer

__all__ = ["Triangular"]


@final
@dataclass(frozen=True)
class Triangular:
    """Up in a straight line from zero to the peak, then down to zero at the last step.

    Args:
        steps: Length of the training in steps.
        peak: The greatest learning rate.
        peak_at: Share of the steps after which it is reached, in (0, 1); the paper's code has 2/5.

    References: Smith, Cyclical learning rates for training neural networks, WACV 2017.
    """

    steps: int
    peak: float
    peak_at: float = 0.4

    def at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0; the last step has 0."""
        share = (step + 1) / self.steps
        rise, fall = share / self.peak_at, (1 - share) / (1 - self.peak_at)
        return self.peak * min(rise, fall)

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set the learning rate of every parameter group and return it."""
        lr = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr
