"""Adversarial training on batches whose images are attacked in different ways."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from multirobust.attacks.choosing import Chosen, MixedSampler
from multirobust.data import Batch
from multirobust.defenses.base import Defense, Loss, cross_entropy

__all__ = ["MixedTraining", "heard_cross_entropy"]


def heard_cross_entropy(
    sampler: MixedSampler, logits: Tensor, batch: Batch, chosen: Chosen
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean cross-entropy, weighted if the sampler says so, and let the sampler hear.

    Args:
        sampler: Chose the attacks.
        logits: Of the adversarial images, (b, k).
        batch: The clean batch.
        chosen: Which attack each image is from.

    Returns:
        The loss, and the share of the images that each attack had, by name.
    """
    index, place = chosen.allotment.index, batch.place
    sampler.hear(logits, batch.y, index, chosen.weights, chosen.notes, place)
    if sampler.importance:
        losses = cross_entropy(logits, batch.y, reduction="none")
        total = (losses * chosen.weights.to(losses.dtype)).mean()
    else:
        total = cross_entropy(logits, batch.y)
    own = index[:, None] == torch.arange(sampler.count, device=index.device)
    shares = own.to(total.dtype).mean(0).unbind()
    names = (f"share_{name}" for name in sampler.names)
    return total, dict(zip(names, shares, strict=True))


@final
class MixedTraining(Defense[Chosen]):
    """Cross-entropy on adversarial images whose attacks are chosen one by one (Eq. 5 an image).

    Args:
        sampler: Chooses them; is told how the model did on the images it trains on.
    """

    def __init__(self, sampler: MixedSampler):
        super().__init__()
        self.sampler = sampler

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> Chosen:
        """Return adversarial images. See `Defense.craft`."""
        place = batch.place
        return self.sampler.craft(model, batch.x, batch.y, place=place, generator=generator)

    def loss(self, model: nn.Module, batch: Batch, views: Chosen) -> Loss:
        """See `Defense.loss`."""
        total, shares = heard_cross_entropy(self.sampler, model(views.x_adv), batch, views)
        return Loss(total, {"cross_entropy": total.detach(), **shares})
