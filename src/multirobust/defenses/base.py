"""What a defense is: craft views of a batch, adapt to them, and a loss to minimize."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.attacks.objectives import at_least_float32
from multirobust.data import Batch

__all__ = ["Defense", "Loss", "cross_entropy"]

V = TypeVar("V")


@dataclass(frozen=True)
class Loss:
    """What one training step minimizes, and what it reports.

    Args:
        total: Scalar to differentiate.
        terms: Named scalars for the log, detached: the parts of the total, and diagnostics.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (b, k) with labels (b,), at least in float32."""
    return F.cross_entropy(at_least_float32(logits), y)


class Defense(nn.Module, abc.ABC, Generic[V]):
    """How one batch becomes a loss. One training loop serves every defense.

    What a defense learns is a parameter, a buffer or extra state, so that its state dict resumes it
    exactly. `craft` and `adapt` leave the model as they found it.
    """

    @abc.abstractmethod
    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> V:
        """Return the views of the batch that the loss needs, such as adversarial images.

        The caller has put the model in the mode for attacks (`attacks.attacking`).
        """

    def adapt(
        self,
        model: nn.Module,
        batch: Batch,
        views: V,
        *,
        lr: float,
        generator: torch.Generator | None = None,
    ) -> V:
        """Take the step of what the defense itself learns, and return the views to train on.

        Args:
            model: The classifier; only read.
            batch: The clean batch.
            views: What `craft` returned.
            lr: The learning rate of this training step.
            generator: Source of fresh noise, on the batch's device.
        """
        return views

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Batch, views: V) -> Loss:
        """Return the loss of the classifier on the views, to be differentiated by the caller."""
