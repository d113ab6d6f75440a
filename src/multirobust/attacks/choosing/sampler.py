"""What all samplers of attacks for single images share: probes, what they hear, what they count."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack
from multirobust.attacks.choosing.dealing import assigned, dealt
from multirobust.attacks.choosing.shapley import shapley_values
from multirobust.attacks.choosing.shares import Shares, Sums
from multirobust.attacks.choosing.watch import Watch
from multirobust.attacks.mixed_apgd import MixedAPGD
from multirobust.attacks.objectives import CrossEntropy
from multirobust.attacks.passes import PassMeter
from multirobust.errors import InputError
from multirobust.ranks import Part
from multirobust.threats import Allotment, Threat
from multirobust.types import Images, Labels, Logits

__all__ = ["Chosen", "MixedSampler"]


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """Adversarial images, and which attack each of them is from.

    Args:
        x_adv: Shape (b, c, h, w).
        allotment: The attack of each image.
        weights: 1 / (k p), p the probability of the image's attack: with them as weights of the
            losses, their mean is an estimate of the mean over all attacks without bias. (b,).
        notes: What the sampler wants summed besides, attack by attack, (b, m).
    """

    x_adv: Images
    allotment: Allotment
    weights: Tensor
    notes: Tensor


class MixedSampler(nn.Module, abc.ABC):
    """Chooses an attack for each image of a batch, and makes the adversarial images.

    What it learns and draws is in its state dict, so that a resumed run is the same run. The
    buffer `draws` counts the images that each attack had.

    Where several processes train, the random numbers are for the whole batch and the same on each,
    and what is learned comes from sums over all, in one message a step.

    An attack whose share of the images stays below half of its quota, or of a quarter of 1 / k
    where there are no quotas, is told of by one warning.

    Args:
        attacks: The set to choose from, see `MixedAPGD`.
        shares: How probable each attack is, or what share of the images it gets.
        seed: Of the sampler's random numbers, which live on the CPU.
        patience: Batches for which a share is too small before the warning.

    Raises:
        InputError: If shares are for another number of attacks.
    """

    importance = False
    """Whether `Chosen.weights` weigh the losses."""

    by_quota: bool | None = None
    """Whether the shares are quotas, or all are equal; None where attacks are drawn."""

    draws: Tensor
    pending: Tensor
    extra: Tensor

    def __init__(
        self, attacks: Sequence[Attack], shares: Shares, *, seed: int = 0, patience: int = 500
    ):
        super().__init__()
        self.engine = MixedAPGD(tuple(attacks))
        count = len(self.engine.attacks)
        if shares.count != count:
            raise InputError(
                f"{type(self).__name__}: shares must be for {count} attacks, got {shares.count}."
            )
        self.shares = shares
        self.count = count
        self.watch = Watch(count, patience=patience)
        self._random = torch.Generator().manual_seed(seed)
        self._heard: list[Tensor] = []
        self._probed = 0
        self.register_buffer("draws", torch.zeros(count, dtype=torch.long))
        self.register_buffer("extra", torch.zeros(2, dtype=torch.long))
        self.register_buffer("pending", torch.zeros(count + 3), persistent=False)

    @property
    def names(self) -> list[str]:
        """A short name of each attack, all different."""
        names: list[str] = []
        for attack in self.engine.attacks:
            threat, objective = attack.threats[0], getattr(attack, "objective", CrossEntropy())
            name = threat.norm if isinstance(threat, Threat) else threat.name
            if not isinstance(objective, CrossEntropy):
                name += f"_{type(objective).__name__.lower()}"
            names.append(name if name not in names else f"{name}_{len(names)}")
        return names

    @property
    def quotas(self) -> list[float]:
        """Below half of what share of the images an attack is told of."""
        if self.by_quota is None:
            return [1 / (4 * self.count)] * self.count
        return self.shares.probabilities() if self.by_quota else [1 / self.count] * self.count

    @property
    def extra_passes(self) -> tuple[int, int]:
        """Forward and backward passes of images that the probes have cost; waits for the device."""
        forwards, backwards = self.extra.tolist()
        return forwards, backwards

    def craft(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        place: Part | None = None,
        start: Images | None = None,
        generator: torch.Generator | None = None,
    ) -> Chosen:
        """Return adversarial images (b, c, h, w), each of the attack that was chosen for it.

        Args:
            model: The classifier, lent by `attacking`.
            x: Clean images (b, c, h, w) in [0, 1].
            y: True labels (b,).
            place: Which rows of the whole batch these are; None is the whole batch.
            start: Where each image starts, (b, c, h, w); None starts at the clean images.
            generator: For attacks that draw, on the device of x.
        """
        place = place or Part(start=0, stop=len(x), total=len(x), fellows=len(x))
        if place.first:
            self.watch.look(type(self).__name__, self.names, self.quotas)
            self._probed = self.shares.probe()
            self.begin(place)
        self._probe(model, x, y, place, generator)
        return self.choose(model, x, y, place, start, generator)

    def begin(self, place: Part) -> None:
        """Draw what is drawn once a batch, for all of its images; by default nothing.

        Args:
            place: Of the first round.
        """

    @abc.abstractmethod
    def choose(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        place: Part,
        start: Images | None,
        generator: torch.Generator | None,
    ) -> Chosen:
        """See `craft`."""

    @torch.no_grad()
    def hear(
        self,
        logits: Logits,
        y: Labels,
        index: Labels,
        weights: Tensor,
        notes: Tensor,
        place: Part,
    ) -> None:
        """Learn how the model does on the images that it trains on; does not wait for the device.

        Args:
            logits: Of the adversarial images, (b, k).
            y: True labels (b,).
            index: The attack of each image, (b,).
            weights: See `Chosen`.
            notes: See `Chosen`.
            place: Which rows these are.
        """
        loss = CrossEntropy().of(logits, y, y)
        right = logits.argmax(1) == y
        columns = torch.stack([c.double() for c in (loss, right, torch.ones_like(loss), weights)])
        columns = torch.cat((columns.T, notes.double()), dim=1)
        numbers = torch.arange(self.count, device=index.device)
        member = (index[:, None] == numbers).double()
        self._heard.append((member[:, :, None] * columns[:, None, :]).sum(0))
        if place.last:
            heard, self._heard = self._heard, []
            table = torch.stack(heard).sum(0)
            self._learn(*place.summed((table, self.pending.double())))

    def _learn(self, table: Tensor, pending: Tensor) -> None:
        sums = Sums(*table.T[:4])
        self.draws.add_(sums.seen.round().long())
        self.watch.note(sums.seen)
        self.extra.add_(pending[-2:].round().long())
        self.shares.observe_probe(pending[: self.count], pending[self.count])
        self.shares.observe(sums)
        self.learn(sums, table.T[4:])
        self.pending.zero_()

    def learn(self, sums: Sums, notes: Tensor) -> None:
        """Learn what is not learned by the shares; by default nothing.

        Args:
            sums: Over the images of the whole batch.
            notes: Sums of `Chosen.notes`, (m, k).
        """

    def _probe(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        place: Part,
        generator: torch.Generator | None,
    ) -> None:
        """Try all attacks on those of these images that are to be probed."""
        images = min(max(self._probed - place.start, 0), len(x))
        if not images:
            return
        x, y, broken = x[:images], y[:images], []
        with PassMeter(model) as meter:
            for number in range(self.count):
                one = Allotment.of([number] * images, self.count, x.device)
                found = self.engine.search(model, x, y, one, generator=generator)
                broken.append(found.margin > 0)
        values = shapley_values(torch.stack(broken, dim=1))
        counts = values.new_tensor((images, meter.forwards, meter.backwards))
        self.pending.add_(torch.cat((values, counts)).to(self.pending.dtype))

    def _assigned(
        self, values: Tensor, place: Part, quotas: Sequence[float], *, explore: float
    ) -> Allotment:
        """Return the allotment of greatest total value to these images; waits for the device.

        Args:
            values: Of each image under each attack, (b, k), finite.
            place: Which rows these are: the quotas are met among the images of all ranks.
            quotas: Shares to meet, each within one image, if `by_quota`; else each image gets its
                best, and these are what the drawn ones are dealt by.
            explore: Share of the images whose attack is drawn.
        """
        rows = place.gathered(values).double().tolist()
        groups = dealt(quotas, len(rows), "stratified", self._random)
        drawn = torch.randperm(len(rows), generator=self._random)[: round(explore * len(rows))]
        free = sorted(set(range(len(rows))) - set(drawn.tolist()))
        sizes = [sum(groups[i] == k for i in free) for k in range(self.count)]
        wanted = [rows[i] for i in free]
        best = assigned(wanted, sizes) if self.by_quota else [row.index(max(row)) for row in wanted]
        for image, group in zip(free, best, strict=True):
            groups[image] = group
        own = groups[place.offset : place.offset + place.rows]
        return Allotment.of(own, self.count, values.device)

    def _weights(self, allotment: Allotment, probabilities: Sequence[float], x: Images) -> Tensor:
        """Return 1 / (k p) of each image's attack, (b,)."""
        table = [1 / (self.count * max(p, 1e-12)) for p in probabilities]
        weights = [table[group] for group in allotment.groups]
        return torch.tensor(weights, dtype=torch.float32).to(x.device, non_blocking=True)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the random state."""
        return {"random": self._random.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self._random.set_state(state["random"].cpu())
