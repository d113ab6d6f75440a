"""A sampler that gives each image the attack from which its own gradient promises most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack, attacking
from multirobust.attacks.choosing.sampler import Chosen, MixedSampler
from multirobust.attacks.choosing.shares import Shares, Sums, in_open
from multirobust.attacks.lockstep_apgd import LockstepAPGD
from multirobust.attacks.lockstep_groups import Group, ask
from multirobust.attacks.objectives import CrossEntropy
from multirobust.errors import InputError
from multirobust.ranks import Part
from multirobust.threats import linear_gain
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels

__all__ = ["Router"]


@final
class Router(MixedSampler):
    """Routes by the dual norms of one gradient, under quotas.

    U_k(i) is what a linear loss with the gradient of clean image i gains at most within ball and
    box of attack k (see `linear_gain`); for an attack without a ball of its own it is 1. r_k, the
    moving average of what the images routed to k gained in cross-entropy over what they promised,
    makes the promises of different norms comparable. Images get the attacks of greatest total
    r_k U_k(i), in groups of the sizes that the shares ask for. Without quotas each image gets the
    attack of greatest r_k U_k(i), which starves all attacks but the one of largest ball.

    The first gradient of Auto-PGD is the one that is looked at, so that routing costs no pass, but
    one forward-backward pass where the attacks have several objectives or start elsewhere. Which
    image goes where is decided on the host, once a step.

    Args:
        attacks: See `MixedSampler`; at least one of `LockstepAPGD`.
        shares: The quotas.
        quotas: Whether they count.
        explore: Share of the images whose attack is drawn.
        rate: Of the moving average of r_k, in (0, 1].
        seed: See `MixedSampler`.
        patience: See `MixedSampler`.

    Raises:
        InputError: If a number is out of range, or there is no attack of `LockstepAPGD`.
    """

    ratio: Tensor
    known: Tensor

    def __init__(
        self,
        attacks: Sequence[Attack],
        shares: Shares,
        *,
        quotas: bool = True,
        explore: float = 0.15,
        rate: float = 0.05,
        seed: int = 0,
        patience: int = 500,
    ):
        super().__init__(attacks, shares, seed=seed, patience=patience)
        lockstep = [a for a in self.engine.attacks if isinstance(a, LockstepAPGD)]
        if not lockstep:
            raise InputError("Router: attacks must name at least one of LockstepAPGD, got none.")
        if not 0 <= explore <= 1:
            raise InputError(f"Router: explore must be a share in [0, 1], got {explore!r}.")
        in_open("Router", "rate", rate)
        self.by_quota, self.explore, self.rate = quotas, explore, rate
        self._asked = lockstep[0]
        self._shared = all(a.objective == self._asked.objective for a in lockstep)
        self.register_buffer("ratio", torch.zeros(self.count))
        self.register_buffer("known", torch.zeros(self.count))

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
        with attacking(model), torch.no_grad():
            (first,) = ask(model, [Group.at(self._asked, model, x, y)])
        gradient = first.gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        promised = torch.stack([self._promise(a, gradient, x) for a in self.engine.attacks], dim=1)
        values = promised.double() * self._rates()
        quotas = self.quotas
        allotment = self._assigned(values, place, quotas, explore=self.explore)
        reused = first if self._shared and start is None else None
        x_adv = self.engine(model, x, y, allotment, start=start, first=reused, generator=generator)
        clean = CrossEntropy().of(first.logits, y, y)
        taken = promised.gather(1, allotment.index[:, None]).squeeze(1)
        notes = torch.stack((clean.to(taken.dtype), taken), dim=1)
        return Chosen(x_adv, allotment, self._weights(allotment, quotas, x), notes)

    def _promise(self, attack: Attack, gradient: Images, x: Images) -> Tensor:
        if isinstance(attack, LockstepAPGD):
            return linear_gain(attack.threat, gradient, x)
        return x.new_ones(len(x))

    def _rates(self) -> Tensor:
        """Return r_k, (k,): 1 until anything is known of an attack."""
        known = self.known > 0
        rates = self.ratio / torch.where(known, self.known, 1)
        return torch.where(known, rates, 1).clamp(min=0).double()

    @torch.no_grad()
    def learn(self, sums: Sums, notes: Tensor) -> None:
        """See `MixedSampler.learn`."""
        clean, promised = notes
        used = (promised > 0).to(self.ratio.dtype)
        gained = (sums.loss - clean) / torch.where(promised > 0, promised, 1)
        self.ratio.add_(self.rate * used * (gained.to(used.dtype) - self.ratio))
        self.known.add_(self.rate * used * (1 - self.known))
