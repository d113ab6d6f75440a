"""Groups of images, each under its own Auto-PGD, that share the passes of the model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack, input_gradient
from multirobust.attacks.engine import State
from multirobust.attacks.lockstep_apgd import LockstepAPGD
from multirobust.attacks.objectives import CrossEntropy, LogitObjective, Margin
from multirobust.errors import InputError
from multirobust.types import Images, Labels, Logits, PerImage

__all__ = ["Answer", "Found", "Group", "alone", "ask", "run"]

LossOfLogits = Callable[[Tensor], Tensor]


class Found(NamedTuple):
    """Adversarial images, and how the model does on them.

    Args:
        images: Shape (b, c, h, w).
        margin: Greatest wrong logit minus the true one, (b,): positive where the model errs. NaN
            where nobody asked.
        loss: Cross-entropy, (b,), or NaN as well.
    """

    images: Images
    margin: PerImage
    loss: PerImage


class Answer(NamedTuple):
    """What the model said about the iterates of a group.

    Args:
        gradient: Of the loss by the iterates, (b, c, h, w).
        loss: That the attack raises, (b,).
        logits: Shape (b, k).
    """

    gradient: Images
    loss: Tensor
    logits: Logits


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Images on their way under one attack.

    Args:
        attack: The attack.
        loss: Its objective, bound to these images.
        state: Of the images, as `LockstepAPGD.begin` returns it.
        scores: Margin and cross-entropy of the strongest iterates so far, (2, b), if wanted.
    """

    attack: LockstepAPGD
    loss: LossOfLogits
    state: State
    scores: Tensor | None

    @classmethod
    def at(
        cls,
        attack: LockstepAPGD,
        model: nn.Module,
        x: Images,
        y: Labels,
        start: Images | None = None,
        *,
        scored: bool = True,
    ) -> Group:
        """Return a group before its first step; a start is projected onto the threat."""
        if start is not None:
            start = attack.threat.project(start.detach(), x)
        scores = x.new_full((2, len(x)), -torch.inf) if scored else None
        loss = attack.objective.bind(model, x, y)
        return cls(attack, loss, attack.begin(x, y, start), scores)

    def moved(self, answer: Answer, step: int) -> Group:
        """Return the group after a step, see `LockstepAPGD.advance`."""
        state = self.attack.advance(self.state, answer.gradient, answer.loss, step)
        better = state["best_loss"] > self.state["best_loss"]
        return replace(self, state=state, scores=self._scores(answer.logits, better))

    def found(self, logits: Logits) -> Found:
        """Return the strongest of all iterates, given the logits of the last ones."""
        loss = self.loss(logits)
        better = loss.nan_to_num(nan=-torch.inf) > self.state["best_loss"]
        images = self.attack.strongest(self.state, loss)
        scores = self._scores(logits, better)
        if scores is None:
            scores = torch.full_like(loss, torch.nan).expand(2, -1)
        return Found(images, *scores.to(images.dtype).unbind())

    def rows(self, index: Tensor) -> Group:
        """Return the group of some of its images, whose loss must not look at the clean ones."""
        state = {name: value.index_select(0, index) for name, value in self.state.items()}
        loss = self.attack.objective
        if not isinstance(loss, LogitObjective) or loss.targeted:
            raise InputError(
                "MixedAPGD: images change their group only under an objective of their logits and "
                f"label, such as CrossEntropy or DLR, got {loss!r}."
            )
        bound = functools.partial(_of_logits, loss, state["y"])
        scores = None if self.scores is None else self.scores.index_select(1, index)
        return replace(self, loss=bound, state=state, scores=scores)

    def _scores(self, logits: Logits, better: Tensor) -> Tensor | None:
        if self.scores is None:
            return None
        y = self.state["y"]
        new = torch.stack([score.of(logits, y, y) for score in (Margin(), CrossEntropy())])
        return torch.where(better, new.to(self.scores.dtype), self.scores)


def _of_logits(loss: LogitObjective, y: Tensor, logits: Tensor) -> Tensor:
    return loss.of(logits, y, y)


def ask(model: nn.Module, groups: Sequence[Group]) -> list[Answer]:
    """Ask the model about the iterates of all groups: one forward-backward pass for all of them."""
    sizes = [len(group.state["y"]) for group in groups]

    def losses(logits: Tensor) -> Tensor:
        pairs = zip(groups, logits.split(sizes), strict=True)
        return _together([group.loss(part) for group, part in pairs])

    iterates = _together([group.state["iterate"] for group in groups])
    gradient, logits = input_gradient(model, iterates, losses)
    parts = (tensor.split(sizes) for tensor in (gradient, losses(logits), logits))
    return list(itertools.starmap(Answer, zip(*parts, strict=True)))


def run(model: nn.Module, groups: Sequence[Group], *, done: int = 0) -> list[Found]:
    """Take all remaining steps and return the strongest images of each group.

    Args:
        model: The model, lent to an attack.
        groups: With the same number of steps.
        done: Steps that the groups have taken.
    """
    if not groups:
        return []
    for step in range(done, groups[0].attack.steps):
        answers = ask(model, groups)
        pairs = zip(groups, answers, strict=True)
        groups = [group.moved(answer, step) for group, answer in pairs]
    logits = model(_together([group.state["iterate"] for group in groups]))
    last = zip(groups, logits.split([len(group.state["y"]) for group in groups]), strict=True)
    return [group.found(part) for group, part in last]


@torch.no_grad()
def alone(
    attack: Attack,
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    generator: torch.Generator | None = None,
) -> Found:
    """Return what an attack of any kind finds; costs one forward pass besides its own."""
    images = attack(model, x, y, generator=generator).to(x.dtype)
    logits = model(images)
    scores = (score.of(logits, y, y).to(x.dtype) for score in (Margin(), CrossEntropy()))
    return Found(images, *scores)


def _together(parts: list[Tensor]) -> Tensor:
    """Return the rows of all parts; those of a single one as they are."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
