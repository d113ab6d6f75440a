"""What an attack raises: a loss of each image, computed from the logits."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels, Logits, PerImage

__all__ = [
    "DLR",
    "CrossEntropy",
    "KLDivergence",
    "LogitObjective",
    "Margin",
    "Objective",
    "TargetedDLR",
    "at_least_float32",
]

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


@dataclass(frozen=True)
class LogitObjective(Objective, abc.ABC):
    """A loss of an image's logits, its label and the class to reach, and of nothing else."""

    targeted: ClassVar[bool] = False
    """Whether the class to reach counts."""

    @abc.abstractmethod
    def of(self, logits: Logits, y: Labels, target: Labels) -> PerImage:
        """Return the loss of each image, (b,), at least in float32.

        Args:
            logits: Shape (b, k).
            y: True labels (b,).
            target: The wrong class to reach (b,); an untargeted loss does not look at it.
        """

    def bind(self, model: nn.Module, x: Images, y: Labels) -> LossOfLogits:
        """See `Objective.bind`. A targeted loss is bound to the greatest wrong logit.

        That is the greatest on the clean image, which costs one forward pass.
        """
        target = _runner_up(model, x, y) if self.targeted else y
        return lambda logits: self.of(logits, y, target)


@final
@dataclass(frozen=True)
class CrossEntropy(LogitObjective):
    """Cross-entropy with the true label, in nats."""

    def of(self, logits: Logits, y: Labels, target: Labels) -> PerImage:
        """See `LogitObjective.of`."""
        return F.cross_entropy(at_least_float32(logits), y, reduction="none")


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
class Margin(LogitObjective):
    """Greatest wrong logit minus the true one: positive where, and only where, the model errs.

    An exact tie counts as 0, not positive; `argmax` may go either way there.
    """

    def of(self, logits: Logits, y: Labels, target: Labels) -> PerImage:
        """See `LogitObjective.of`."""
        logits = at_least_float32(logits)
        wrong = logits.scatter(1, y[:, None], float("-inf")).amax(dim=1)
        return wrong - _logit(logits, y)


@final
@dataclass(frozen=True)
class DLR(LogitObjective):
    """Difference of logits ratio: the margin in units of the gap from first to third logit.

    Blind to the scale of the logits, where cross-entropy loses its gradient to saturation. Above 0
    where the model errs. With two classes there is no third logit, and any ratio of the two that
    ignores their scale is constant: the loss is then the margin itself, which ranks the iterates of
    one image as any multiple of it would. The same holds where the gap is zero.

    References: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks, ICML 2020.
    """

    def of(self, logits: Logits, y: Labels, target: Labels) -> PerImage:
        """See `LogitObjective.of`."""
        return Margin().of(logits, y, target) / _gap(at_least_float32(logits), ranks=(2,))


@final
@dataclass(frozen=True)
class TargetedDLR(LogitObjective):
    """Logit of the class to reach minus the true one, in units of a gap between logits.

    The gap is from the first logit to the mean of third and fourth; with three classes to the
    third. With two classes, or where it is zero, the difference itself (see `DLR`).

    References: Croce and Hein, ICML 2020 (see `DLR`).
    """

    targeted: ClassVar[bool] = True

    def of(self, logits: Logits, y: Labels, target: Labels) -> PerImage:
        """See `LogitObjective.of`."""
        logits = at_least_float32(logits)
        return (_logit(logits, target) - _logit(logits, y)) / _gap(logits, ranks=(2, 3))


def _logit(logits: Tensor, label: Tensor) -> Tensor:
    """Return the logit of one class for each image."""
    return logits.gather(1, label[:, None]).squeeze(1)


def _gap(logits: Tensor, *, ranks: tuple[int, ...]) -> Tensor:
    """Return how far the greatest logit is above the mean of those of these ranks, from 0.

    Ranks that there are no classes for do not count; 1 where none is left or the gap is zero.
    """
    present = [rank for rank in ranks if rank < logits.shape[1]]
    if not present:
        return torch.ones_like(logits[:, 0])
    top = logits.topk(max(present) + 1, dim=1).values
    gap = top[:, 0] - top[:, present].mean(dim=1)
    return torch.where(gap > 0, gap, 1)


@torch.no_grad()
def _runner_up(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the wrong class of greatest logit of each image."""
    return model(x).scatter(1, y[:, None], float("-inf")).argmax(dim=1)
