"""What an attack raises: a loss of each image, computed from the logits."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels, Logits, PerImage

__all__ = ["CrossEntropy", "KLDivergence", "Margin", "Objective", "at_least_float32"]

LossOfLogits: TypeAlias = Callable[[Tensor], Tensor]


def at_least_float32(logits: Tensor) -> Tensor:
    """Return the logits in the dtype that losses are computed in: float64 stays, half is raised."""
    return logits.to(work_dtype(logits))


@dataclass(frozen=True)
class Objective(abc.ABC):
    """A loss that an attack maximizes. Frozen: it carries settings, never tensors."""

    @abc.abstractmethod
    def bind(self, model: nn.Module, x: Images, y: Labels) -> LossOfLogits:
        """Return the function from logits (b, k) to losses (b,) for these clean images and labels.

        Called once an attack, so that what depends on the clean images only is computed once.
        """


@final
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy with the true label, in nats."""

    def bind(self, model: nn.Module, x: Images, y: Labels) -> LossOfLogits:
        """See `Objective.bind`."""

        def loss(logits: Logits) -> PerImage:
            return F.cross_entropy(at_least_float32(logits), y, reduction="none")

        return loss


@final
@dataclass(frozen=True)
class KLDivergence(Objective):
    """KL divergence from the prediction on the clean image, in nats; labels are not used.

    References: Zhang et al., Theoretically principled trade-off between robustness and accuracy,
    ICML 2019.
    """

    def bind(self, model: nn.Module, x: Images, y: Labels) -> LossOfLogits:
        """See `Objective.bind`. Costs one forward pass."""
        with torch.no_grad():
            clean = F.log_softmax(at_least_float32(model(x)), dim=1)

        def loss(logits: Logits) -> PerImage:
            log_p = F.log_softmax(at_least_float32(logits), dim=1)
            return F.kl_div(log_p, clean, reduction="none", log_target=True).sum(dim=1)

        return loss


@final
@dataclass(frozen=True)
class Margin(Objective):
    """Greatest wrong logit minus the true one: positive where, and only where, the model errs.

    An exact tie counts as 0, not positive; `argmax` may go either way there.
    """

    def bind(self, model: nn.Module, x: Images, y: Labels) -> LossOfLogits:
        """See `Objective.bind`."""

        def loss(logits: Logits) -> PerImage:
            logits = at_least_float32(logits)
            true = logits.gather(1, y[:, None]).squeeze(1)
            wrong = logits.scatter(1, y[:, None], float("-inf")).amax(dim=1)
            return wrong - true

        return loss
