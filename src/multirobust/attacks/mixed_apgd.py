"""Auto-PGD for training on a batch in which every image has an attack of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack, attacking, check_batch, input_gradient
from multirobust.attacks.engine import State
from multirobust.attacks.lockstep_apgd import LockstepAPGD
from multirobust.errors import InputError
from multirobust.threats import Allotment, Threat
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels, Logits

__all__ = ["Answer", "Group", "MixedAPGD", "ask", "run"]

LossOfLogits = Callable[[Tensor], Tensor]


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
    """

    attack: LockstepAPGD
    loss: LossOfLogits
    state: State

    @classmethod
    def at(
        cls,
        attack: LockstepAPGD,
        model: nn.Module,
        x: Images,
        y: Labels,
        start: Images | None = None,
    ) -> Group:
        """Return a group before its first step; a start is projected onto the threat."""
        if start is not None:
            start = attack.threat.project(start.detach(), x)
        return cls(attack, attack.objective.bind(model, x, y), attack.begin(x, y, start))

    def moved(self, answer: Answer, step: int) -> Group:
        """Return the group after a step, see `LockstepAPGD.advance`."""
        state = self.attack.advance(self.state, answer.gradient, answer.loss, step)
        return replace(self, state=state)


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


@final
@dataclass(frozen=True)
class MixedAPGD:
    """Auto-PGD in which every image of a batch has its own attack: threat, radius and objective.

    All images share one pass a step; direction, projection and step sizes go group by group. An
    image gets what `LockstepAPGD` would give it among the images of its group alone, but for what
    images of a batch have to do with each other in the model. Costs T + 1 forward and T backward
    passes, and for an objective that asks about the clean images, such as `TargetedDLR`, one more
    of its group. No step waits for the device.

    An attack of another kind, such as a rotation, takes its images alone.

    Args:
        attacks: What an image may be given. Those of `LockstepAPGD` have the same number of steps.

    Raises:
        InputError: If there is no attack, or their numbers of steps differ.
    """

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        steps = {attack.steps for attack in self.attacks if isinstance(attack, LockstepAPGD)}
        if not self.attacks:
            raise InputError("MixedAPGD: attacks must name at least one attack, got none.")
        if len(steps) > 1:
            raise InputError(
                "MixedAPGD: all attacks of LockstepAPGD must have the same number of steps, as "
                f"they share the passes, got {', '.join(map(str, sorted(steps)))}."
            )

    @property
    def steps(self) -> int:
        """Steps of the attacks that share passes; 0 if none does."""
        return next((a.steps for a in self.attacks if isinstance(a, LockstepAPGD)), 0)

    @property
    def threats(self) -> tuple[Threat, ...]:
        """The one ball of each attack.

        Raises:
            InputError: If an attack has none.
        """
        for attack in self.attacks:
            if len(attack.threats) != 1 or not isinstance(attack.threats[0], Threat):
                raise InputError(
                    "MixedAPGD: each attack must have exactly one ball, for other images to be "
                    f"projected onto, got {attack!r}; bring its images into one by Projected."
                )
        return tuple(t for attack in self.attacks for t in attack.threats if isinstance(t, Threat))

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        allotment: Allotment,
        *,
        start: Images | None = None,
        generator: torch.Generator | None = None,
    ) -> Images:
        """Return adversarial images of the shape of x, detached; x and the model stay as they are.

        Args:
            model: Maps images (b, c, h, w) in [0, 1] to logits (b, k).
            x: Clean images (b, c, h, w) in [0, 1], float.
            y: True labels (b,), int64.
            allotment: Which attack each image gets, by its place in `attacks`.
            start: Where each image starts, (b, c, h, w), projected onto its threat; None starts at
                the clean images. Attacks of another kind do not look at it.
            generator: For attacks of another kind, see `Attack.__call__`.

        Raises:
            InputError: If the allotment is not one of these images to these attacks.
        """
        check_batch(x, y)
        if (len(allotment.groups), allotment.count) != (len(x), len(self.attacks)):
            raise InputError(
                f"allotment: it must give {len(x)} images to {len(self.attacks)} attacks, got one "
                f"of {len(allotment.groups)} to {allotment.count}."
            )
        x = x.detach().to(work_dtype(x))
        found: dict[int, Tensor] = {}
        with attacking(model), torch.no_grad():
            together = self._groups(model, x, y, allotment, start)
            found |= zip(together, run(model, list(together.values())), strict=True)
            parts = zip(allotment.parted(x), allotment.parted(y), strict=True)
            for number, (images, labels) in enumerate(parts):
                if len(images) and number not in found:
                    other = self.attacks[number]
                    found[number] = other(model, images, labels, generator=generator)
        return allotment.merged([found[number].to(x.dtype) for number in sorted(found)])

    def _groups(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        allotment: Allotment,
        start: Images | None,
    ) -> dict[int, Group]:
        """Return the groups that share passes and have an image, by their attack's number."""
        starts = [None] * allotment.count if start is None else allotment.parted(start)
        rows = zip(self.attacks, allotment.parted(x), allotment.parted(y), starts, strict=True)
        return {
            number: Group.at(attack, model, images, labels, begin)
            for number, (attack, images, labels, begin) in enumerate(rows)
            if len(images) and isinstance(attack, LockstepAPGD)
        }


def run(model: nn.Module, groups: Sequence[Group], *, done: int = 0) -> list[Images]:
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
    return [group.attack.strongest(group.state, group.loss(part)) for group, part in last]


def _together(parts: list[Tensor]) -> Tensor:
    """Return the rows of all parts; those of a single one as they are."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
