"""Shares that follow the loss of each attack beyond the least that it has been."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from multirobust.attacks.choosing.shares import Shares, Sums, in_open
from multirobust.errors import InputError

__all__ = ["Excess", "HedgeShares", "UCBShares"]


@final
class Excess(nn.Module):
    """By how much the loss of each attack exceeds the least that it has been.

    What cannot be removed, such as the loss of images that any model gets wrong, so does not count.
    The least is of the moving average of the loss: that of single batches falls by chance.

    Args:
        count: Number of attacks.
        rate: Of the moving average.
    """

    mean: Tensor
    known: Tensor
    least: Tensor

    def __init__(self, count: int, *, rate: float = 0.05):
        super().__init__()
        self.rate = rate
        for name in ("mean", "known", "least"):
            self.register_buffer(name, torch.zeros(count))

    @torch.no_grad()
    def of(self, sums: Sums) -> Tensor:
        """Hear of a batch and return the sums of what exceeds the least, (k,)."""
        used = (sums.seen > 0).to(self.mean.dtype)
        mean = (sums.loss / sums.seen.clamp(min=1)).to(used.dtype)
        new = (self.known == 0) & (used > 0)
        self.mean.add_(self.rate * used * (mean - self.mean))
        self.known.add_(self.rate * used * (1 - self.known))
        average = self.mean / torch.where(self.known > 0, self.known, 1)
        least = torch.where(new, average, torch.minimum(self.least, average))
        self.least.copy_(torch.where(used > 0, least, self.least))
        return sums.loss - self.least * sums.seen


@final
class HedgeShares(Shares):
    """w = softmax(s) with s_k <- (1 - decay) s_k + step * the importance-weighted excess loss.

    The excess (see `Excess`) of the images of attack k is divided by b p_k, so that its expectation
    is the excess of attack k on all b images, however they are dealt. Against a fixed excess d_k, s
    comes to rest at step / decay * d_k: the rule looks for the attack of greatest mean loss.

    Args:
        count: Number of attacks.
        step: Learning rate, positive.
        decay: Share of the scores that a batch forgets, in (0, 1].
        floor: See `Shares`.

    References: Auer, Cesa-Bianchi, Freund and Schapire, The nonstochastic multiarmed bandit
    problem, SIAM Journal on Computing 2002 (Exp3.S). Sagawa, Koh, Hashimoto and Liang,
    Distributionally robust neural networks for group shifts, ICLR 2020.
    """

    scores: Tensor

    def __init__(self, count: int, *, step: float = 0.05, decay: float = 0.01, floor: float = 0.15):
        super().__init__(count, floor=floor)
        if not 0 < step < math.inf:
            raise InputError(f"HedgeShares: step must be positive and finite, got {step!r}.")
        in_open("HedgeShares", "decay", decay)
        self.step, self.decay = step, decay
        self.excess = Excess(count)
        self.register_buffer("scores", torch.zeros(count))

    def weights(self) -> list[float]:
        """See `Shares.weights`."""
        return self.scores.double().softmax(0).tolist()

    @torch.no_grad()
    def observe(self, sums: Sums) -> None:
        """See `Shares.observe`."""
        weight = self.count * sums.weight / sums.seen.clamp(min=1)
        gain = weight * self.excess.of(sums) / sums.seen.sum().clamp(min=1)
        self.scores.mul_(1 - self.decay).add_(self.step * gain)


@final
class UCBShares(Shares):
    """All but the floor for the attack of greatest upper confidence bound of its excess loss.

    The bound is the discounted mean of the excess plus width * sqrt(log(sum_j n_j) / n_k), n_k the
    discounted number of batches' worth of images that attack k had.

    Args:
        count: Number of attacks.
        width: Of the confidence bound, in nats, at least 0.
        decay: Share of the past that a batch forgets, in (0, 1].
        floor: See `Shares`.

    References: Garivier and Moulines, On upper-confidence bound policies for switching bandit
    problems, ALT 2011 (discounted UCB).
    """

    reward: Tensor
    pulls: Tensor

    def __init__(self, count: int, *, width: float = 0.1, decay: float = 0.01, floor: float = 0.15):
        super().__init__(count, floor=floor)
        if not 0 <= width < math.inf:
            raise InputError(f"UCBShares: width must be finite and at least 0, got {width!r}.")
        in_open("UCBShares", "decay", decay)
        self.width, self.decay = width, decay
        self.excess = Excess(count)
        self.register_buffer("reward", torch.zeros(count))
        self.register_buffer("pulls", torch.zeros(count))

    def weights(self) -> list[float]:
        """See `Shares.weights`. Uniform until each attack has been used."""
        reward, pulls = torch.stack((self.reward, self.pulls)).double().tolist()
        if not all(pulls):
            return [1.0] * self.count
        log = math.log(max(sum(pulls), 1.0))
        bounds = [
            r / n + self.width * math.sqrt(log / n) for r, n in zip(reward, pulls, strict=True)
        ]
        best = bounds.index(max(bounds))
        return [float(k == best) for k in range(self.count)]

    @torch.no_grad()
    def observe(self, sums: Sums) -> None:
        """See `Shares.observe`."""
        images = sums.seen.sum().clamp(min=1)
        self.reward.mul_(1 - self.decay).add_(self.excess.of(sums) / images)
        self.pulls.mul_(1 - self.decay).add_(sums.seen / images)
