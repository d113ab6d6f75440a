"""Adversarial noise training (ANT): a generator climbs the loss of the classifier."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.attacks import attacking
from multirobust.data import Batch
from multirobust.defenses.base import Defense, Loss, cross_entropy
from multirobust.defenses.learner import Learner
from multirobust.defenses.restoring import load_optimizer
from multirobust.models import NoiseGenerator
from multirobust.threats import L2

__all__ = ["ANT"]


@final
class ANT(Defense[Tensor]):
    """Adversarial noise training: a generator learns the noise of greatest loss.

    The noise is scaled to the sphere of the l2 radius and kept within the pixel box; the generator
    climbs the classifier's loss with the classifier's learning rate; the classifier trains on a
    batch of which one part stays clean. The replay of former generators, which the source adds for
    long trainings, is left out.

    Args:
        noise: The generator.
        threat: l2 ball; its radius is the length of the noise.
        clean_share: Share of the batch that stays clean; published: 0.5.

    References: Rusak et al., A simple way to make neural networks robust against diverse image
    corruptions, ECCV 2020.
    """

    def __init__(self, noise: NoiseGenerator, threat: L2, *, clean_share: float = 0.5):
        super().__init__()
        self.noise = noise
        self.threat = threat
        self.clean_share = clean_share
        self._learner = Learner(noise, momentum=0.0, weight_decay=0.0)

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noisy images, with a graph that leads to the generator. See `Defense.craft`."""
        noise = self.noise(self.noise.draw(batch.x, generator), batch.x)
        return self.threat.project(batch.x + self._scaled(noise), batch.x)

    def _scaled(self, noise: Tensor) -> Tensor:
        length = noise.flatten(1).norm(dim=1)
        factor = self.threat.radius / torch.where(length > 0, length, 1)
        return noise * factor[:, None, None, None]

    def adapt(
        self,
        model: nn.Module,
        batch: Batch,
        views: Tensor,
        *,
        lr: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Step the generator uphill; the views stay. See `Defense.adapt`."""
        with attacking(model):
            loss = batch.place.weighted(cross_entropy(model(views), batch.y))
            gradients = torch.autograd.grad(loss, self._learner.parameters)
            gradients = batch.place.summed(gradients)
        self._learner.step(tuple(-gradient for gradient in gradients), lr)
        return views.detach()

    def loss(self, model: nn.Module, batch: Batch, views: Tensor) -> Loss:
        """See `Defense.loss`."""
        place = batch.place
        clean = min(max(round(self.clean_share * place.total) - place.start, 0), len(batch.x))
        mixed = torch.cat((batch.x[:clean], views.detach()[clean:]))
        total = cross_entropy(model(mixed), batch.y)
        return Loss(total, {"cross_entropy": total.detach()})

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the generator's optimizer."""
        return {"learner": self._learner.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        load_optimizer(self._learner.optimizer, {**state}["learner"])
