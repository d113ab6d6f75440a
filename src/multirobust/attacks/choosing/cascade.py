"""A sampler that tries one attack after the other, each on the images that still stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final, get_args

import torch
from torch import nn

from multirobust.attacks.base import Attack
from multirobust.attacks.choosing.dealing import dealt
from multirobust.attacks.choosing.sampler import Chosen, MixedSampler
from multirobust.attacks.choosing.shares import Shares
from multirobust.errors import InputError, lookup_error
from multirobust.ranks import Part
from multirobust.threats import Allotment
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels

__all__ = ["Cascade"]

Order = Literal["drawn", "sorted"]


@final
class Cascade(MixedSampler):
    """Spends the later attacks on survivors, as AutoAttack does.

    Each image has an order of the attacks. Those that the first does not break are given to the
    second, and so on. An image is trained on at its first break, else at the attempt of greatest
    cross-entropy. So all of the union is looked for, at the cost of (T + 1) forward and T backward
    passes for the images that are left at each stage, at most k times; no attack of another kind
    costs less than one forward pass more than by itself.

    The sizes of the later stages are known only when they begin: the host waits once a stage. With
    BatchNorm in training mode an attack on few survivors sees other statistics than one on the
    whole batch; `attack.batch_norm = "running"` avoids that.

    Args:
        attacks: See `MixedSampler`.
        shares: Decide the order.
        margin: How far the logit of another class must be above that of the label, for an image to
            count as broken; above 0 an image that is only just broken goes on.
        order: "drawn": for each image, without replacement with these probabilities, and the first
            stage stratified over the batch; "sorted": the most probable attack first, for all.
            With "sorted" the later attacks are trained on only where the first ones fail.
        seed: See `MixedSampler`.
        patience: See `MixedSampler`.

    References: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks, ICML 2020.
    """

    by_quota = True

    def __init__(
        self,
        attacks: Sequence[Attack],
        shares: Shares,
        *,
        margin: float = 0.0,
        order: Order | str = "drawn",
        seed: int = 0,
        patience: int = 500,
    ):
        super().__init__(attacks, shares, seed=seed, patience=patience)
        if order not in get_args(Order):
            raise lookup_error("order", order, get_args(Order))
        if not 0 <= margin < float("inf"):
            raise InputError(
                f"Cascade: margin must be finite and not below 0, got {margin!r}; it is a "
                "difference of logits."
            )
        self.order, self.margin = order, margin
        self._orders: list[list[int]] = []

    def begin(self, place: Part) -> None:
        """See `MixedSampler.begin`."""
        shares = self.shares.probabilities()
        if self.order == "sorted":
            best = sorted(range(self.count), key=lambda k: -shares[k])
            self._orders = [best] * place.total
            return
        first = dealt(shares, place.total, "stratified", self._random)
        # The largest of log p + Gumbel noise, then the next: a draw without replacement.
        size = (place.total, self.count)
        noise = torch.rand(size, dtype=torch.float64, generator=self._random)
        keys = torch.tensor(shares, dtype=torch.float64).log() - (-noise.log()).log()
        later = keys.argsort(dim=1, descending=True).tolist()
        self._orders = [
            [head, *(k for k in tail if k != head)] for head, tail in zip(first, later, strict=True)
        ]

    def choose(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        place: Part,
        start: Images | None,
        generator: torch.Generator | None,
    ) -> Chosen:
        """See `MixedSampler.choose`."""
        x = x.detach().to(work_dtype(x))
        orders = self._orders[place.start : place.stop]
        best, loss = x, x.new_full((len(x),), -torch.inf)
        used, left = [order[0] for order in orders], list(range(len(x)))
        for stage in range(self.count):
            if not left:
                break
            rows = torch.tensor(left).to(x.device, non_blocking=True)
            tried = [orders[image][stage] for image in left]
            found = self.engine.search(
                model,
                x[rows],
                y[rows],
                Allotment.of(tried, self.count, x.device),
                start=None if start is None else start[rows],
                generator=generator,
            )
            broken = found.margin > self.margin
            better = broken | ~(found.loss <= loss[rows])
            images = torch.where(better[:, None, None, None], found.images, best[rows])
            best = best.index_copy(0, rows, images)
            loss = loss.index_copy(0, rows, torch.where(better, found.loss, loss[rows]))
            flags = torch.stack((broken, better), dim=1).tolist()
            for image, attack, (_, taken) in zip(left, tried, flags, strict=True):
                used[image] = attack if taken else used[image]
            left = [image for image, (gone, _) in zip(left, flags, strict=True) if not gone]
        allotment = Allotment.of(used, self.count, x.device)
        return Chosen(best, allotment, x.new_ones(len(x)), x.new_zeros((len(x), 0)))
