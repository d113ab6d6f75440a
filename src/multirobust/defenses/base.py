"""What a defense is: craft views of a batch, adapt to them, and a loss to minimize."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.attacks.base import run_directly
from multirobust.attacks.objectives import at_least_float32
from multirobust.data import Batch

__all__ = ["Defense", "Loss", "cross_entropy", "smoothed_labels"]

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


_SMOOTHING: ContextVar[float] = ContextVar("label smoothing", default=0.0)


@contextlib.contextmanager
def smoothed_labels(share: float) -> Iterator[None]:
    """Smooth the labels of each `cross_entropy` inside: the training loss, not what attacks raise.

    Args:
        share: Of each label that is spread evenly over all classes, in [0, 1); 0 changes no bit.

    References: Szegedy et al., Rethinking the Inception architecture for computer vision, CVPR
    2016.
    """
    token = _SMOOTHING.set(share)
    try:
        yield
    finally:
        _SMOOTHING.reset(token)


def cross_entropy(logits: Tensor, y: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits (b, k) with labels (b,), at least in float32.

    The labels are smoothed inside `smoothed_labels`, which is where the loop calls `Defense.loss`.

    Args:
        logits: Shape (b, k).
        y: Labels (b,).
        reduction: "mean", "sum", or "none" for one value an image.
    """
    share = _SMOOTHING.get()
    return F.cross_entropy(at_least_float32(logits), y, reduction=reduction, label_smoothing=share)


class Defense(nn.Module, abc.ABC, Generic[V]):
    """How one batch becomes a loss. One training loop serves every defense.

    What a defense learns is a parameter, a buffer or extra state, so that its state dict resumes it
    exactly. `craft` and `adapt` leave the model as they found it.

    A defense hands the heavy part of `adapt` to `run`, which the loop may set to something that
    gives the same result in less time, such as `training.Replays`.
    """

    run: Callable[..., Any] = staticmethod(run_directly)

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

    def after_epoch(self, model: nn.Module) -> None:
        """Change the weights of the model at the end of an epoch; by default not at all.

        Called after the last step of an epoch and before anything is saved, averaged or measured.

        Args:
            model: The classifier; parameters and buffers may change in place.
        """
