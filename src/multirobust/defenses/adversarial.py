"""Defenses that minimize a classification loss on clean or adversarial images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.attacks import Always, Attack, Sampler
from multirobust.attacks.objectives import at_least_float32
from multirobust.data import Batch
from multirobust.defenses.base import Defense, Loss, cross_entropy
from multirobust.errors import InputError

__all__ = ["TRADES", "AdversarialTraining", "AverageTraining", "Standard"]


@final
class Standard(Defense[None]):
    """Cross-entropy on clean images: no defense at all."""

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> None:
        """See `Defense.craft`."""

    def loss(self, model: nn.Module, batch: Batch, views: None) -> Loss:
        """See `Defense.loss`."""
        total = cross_entropy(model(batch.x), batch.y)
        return Loss(total, {"cross_entropy": total.detach()})


@final
class AdversarialTraining(Defense[Tensor]):
    """Cross-entropy on adversarial images only (Eq. 2).

    With one attack, Madry et al.; with `WorstCase`, Eq. 3; with `MSD`, Maini et al.; with a
    `UniformSampler`, stochastic adversarial training (Eq. 5); with an `ErrorSampler` over the
    extreme norms, E-AT. The sampler is told how the model did on the images it trains on.

    Args:
        attack: An attack, or the sampler that draws one for each batch.
    """

    def __init__(self, attack: Attack | Sampler):
        super().__init__()
        self.sampler = Always(attack) if isinstance(attack, Attack) else attack
        self._seen: list[tuple[Tensor, Tensor]] = []

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return adversarial images. See `Defense.craft`."""
        attack = self.sampler.draw(again=not batch.place.first)
        return attack(model, batch.x, batch.y, generator=generator)

    def loss(self, model: nn.Module, batch: Batch, views: Tensor) -> Loss:
        """See `Defense.loss`."""
        logits = model(views)
        if self.sampler.last is not None:
            self._observe(self.sampler.last, logits, batch)
        total = cross_entropy(logits, batch.y)
        return Loss(total, {"cross_entropy": total.detach()})

    def _observe(self, index: int, logits: Tensor, batch: Batch) -> None:
        """Tell the sampler of the whole batch at once, whoever computed which part of it."""
        place = batch.place
        self._seen.append((place.gathered(logits), place.gathered(batch.y)))
        if place.last:
            seen, self._seen = self._seen, []
            self.sampler.observe(index, *map(torch.cat, zip(*seen, strict=True)))


@final
class AverageTraining(Defense[tuple[Tensor, ...]]):
    """Mean of the cross-entropies on the images of several attacks (Eq. 4).

    Args:
        attacks: The attacks; each costs its passes and one training pass.

    References: Tramèr and Boneh, Adversarial training and robustness for multiple perturbations,
    NeurIPS 2019.
    """

    def __init__(self, attacks: Sequence[Attack]):
        super().__init__()
        if not attacks:
            raise InputError("AverageTraining: attacks must name at least one attack, got none.")
        self.attacks = tuple(attacks)

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Return the adversarial images of each attack. See `Defense.craft`."""
        return tuple(
            attack(model, batch.x, batch.y, generator=generator) for attack in self.attacks
        )

    def loss(self, model: nn.Module, batch: Batch, views: tuple[Tensor, ...]) -> Loss:
        """See `Defense.loss`."""
        losses = [cross_entropy(model(view), batch.y) for view in views]
        total = torch.stack(losses).mean()
        return Loss(total, {"cross_entropy": total.detach()})


@final
class TRADES(Defense[Tensor]):
    """Clean cross-entropy plus beta times KL(clean prediction || adversarial prediction).

    Args:
        attack: Raises the divergence: an attack whose objective is `KLDivergence`.
        beta: Weight of the divergence; published: 6.

    References: Zhang et al., Theoretically principled trade-off between robustness and accuracy,
    ICML 2019.
    """

    def __init__(self, attack: Attack, *, beta: float = 6.0):
        super().__init__()
        self.attack = attack
        self.beta = beta

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the images of greatest divergence found. See `Defense.craft`."""
        return self.attack(model, batch.x, batch.y, generator=generator)

    def loss(self, model: nn.Module, batch: Batch, views: Tensor) -> Loss:
        """See `Defense.loss`."""
        clean = at_least_float32(model(batch.x))
        clean_log_p = F.log_softmax(clean, dim=1)
        adversarial_log_p = F.log_softmax(at_least_float32(model(views)), dim=1)
        classification = cross_entropy(clean, batch.y)
        divergence = F.kl_div(
            adversarial_log_p, clean_log_p, reduction="batchmean", log_target=True
        )
        terms = {"cross_entropy": classification.detach(), "divergence": divergence.detach()}
        return Loss(classification + self.beta * divergence, terms)
