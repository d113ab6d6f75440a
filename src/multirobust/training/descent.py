"""From a batch to a gradient: craft, adapt and loss of any defense, on the images of this rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from multirobust.attacks import attacking
from multirobust.data import Batch
from multirobust.defenses import Loss
from multirobust.defenses.base import smoothed_labels
from multirobust.training.acceleration import Acceleration
from multirobust.training.job import Job
from multirobust.training.runtime import Runtime
from multirobust.training.team import Share
from multirobust.training.views import joined, rows

__all__ = ["Descent"]


@final
@dataclass(frozen=True)
class Descent:
    """One step of any defense, up to what the optimizer does with it.

    Args:
        job: Its model, batch_norm and configuration count.
        defense: On the device.
        wrapped: The model as the loss uses it: its gradients are averaged over the ranks.
        runtime: Gives the precision.
        faster: Compiles and replays, if that was asked for.
    """

    job: Job
    defense: Any
    wrapped: nn.Module
    runtime: Runtime
    faster: Acceleration

    def views(self, share: Share, *, lr: float) -> Any:
        """Craft the views of this rank's images, and adapt to them."""
        model, fast, defense = self.job.model, self.faster.attacked(), self.defense
        with self.runtime.autocast():
            with attacking(model, self.job.batch_norm):
                crafted = [defense.craft(fast, b, generator=share.source(b)) for b in share.rounds]
            views, source = joined(crafted), share.adapting
            return defense.adapt(model, share.batch, views, lr=lr, generator=source)

    def differentiate(self, share: Share, views: Any) -> dict[str, Tensor]:
        """Add the gradient of the mean loss to the weights', and return what it reports."""
        if self.faster.replays.enabled:
            loss = self.faster.replayed(self._loss, share.batch, views)
            return {"loss": loss.total, **loss.terms}
        runtime, own = self.runtime, share.part
        means: dict[str, Tensor] = {}
        for batch in share.rounds:
            part = batch.place
            chosen = rows(views, part.start - own.start, part.stop - own.start, own.rows)
            with runtime.adding(self.wrapped, last=part.last):
                loss = self._loss(self.faster.of(self.wrapped), batch, chosen)
                runtime.backward(share.scaled(loss.total, batch))
            for name, value in {"loss": loss.total, **loss.terms}.items():
                value = value.detach() * (part.rows / own.rows) if part.rounds > 1 else value
                means[name] = means[name] + value if name in means else value
        return means

    def _loss(self, model: nn.Module, batch: Batch, views: Any) -> Loss:
        smoothing = self.job.config.label_smoothing
        with self.runtime.autocast(), smoothed_labels(smoothing):
            return self.defense.loss(model, batch, views)
