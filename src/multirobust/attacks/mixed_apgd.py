"""Auto-PGD for training on a batch in which every image has an attack of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack, attacking, check_batch, run_directly
from multirobust.attacks.lockstep_apgd import LockstepAPGD
from multirobust.attacks.lockstep_groups import Answer, Found, Group, alone, run
from multirobust.attacks.lockstep_masked import run_masked
from multirobust.attacks.objectives import LogitObjective
from multirobust.errors import InputError
from multirobust.threats import Allotment, Threat
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels

__all__ = ["MixedAPGD"]


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

    On a CUDA device, where launches count and not what they do, each attack moves all images and
    each image keeps what its own does with it, so that the shapes are always the same and the
    search can be recorded (`training.Replays`). That needs objectives of logits and labels alone,
    and no attack of another kind.

    Args:
        attacks: What an image may be given. Those of `LockstepAPGD` have the same number of steps.
        masked: Whether all attacks move all images; None: on a CUDA device, if it can be. Where the
            first answer is given, they never do.
        run: Runs a call where all attacks move all images, see `Defense.run`; `search` runs itself.

    Raises:
        InputError: If there is no attack, or their numbers of steps differ.
    """

    attacks: tuple[Attack, ...]
    masked: bool | None = None
    run: Callable[..., Any] = field(default=run_directly, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps = {attack.steps for attack in self.attacks if isinstance(attack, LockstepAPGD)}
        if not self.attacks:
            raise InputError("MixedAPGD: attacks must name at least one attack, got none.")
        if len(steps) > 1:
            raise InputError(
                "MixedAPGD: all attacks of LockstepAPGD must have the same number of steps, as "
                f"they share the passes, got {', '.join(map(str, sorted(steps)))}."
            )
        if self.masked and not all(map(_has_masked_form, self.attacks)):
            raise InputError(
                "MixedAPGD: masked needs attacks of LockstepAPGD, with objectives of the logits "
                f"and labels alone, got {self.attacks!r}; use masked=False."
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
        first: Answer | None = None,
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
            first: What the model said about the clean images, if it was asked before, by a loss
                that all these attacks share; saves a forward-backward pass.
            generator: For attacks of another kind, see `Attack.__call__`.

        Raises:
            InputError: If the allotment is not one of these images to these attacks.
        """

        def taken(attack: Attack, x: Images, y: Labels) -> Found:
            images = attack(model, x, y, generator=generator).to(x.dtype)
            return Found(images, *x.new_full((2, len(x)), torch.nan))

        if first is None and self._is_masked(x):
            return self._all_on_all(model, x, y, allotment, start, scored=False).images
        begun = functools.partial(Group.at, scored=False)
        return self._found(begun, taken, model, x, y, allotment, start, first).images

    def search(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        allotment: Allotment,
        *,
        start: Images | None = None,
        generator: torch.Generator | None = None,
    ) -> Found:
        """Return adversarial images as `__call__` does, and how the model does on them.

        That costs nothing but for attacks of another kind, whose images pass the model once more.
        """

        def taken(attack: Attack, x: Images, y: Labels) -> Found:
            return alone(attack, model, x, y, generator=generator)

        if self._is_masked(x):
            return self._all_on_all(model, x, y, allotment, start, scored=True)
        return self._found(Group.at, taken, model, x, y, allotment, start, None)

    def _is_masked(self, x: Images) -> bool:
        """Tell whether each attack is to move all images."""
        if self.masked is not None:
            return self.masked
        return x.is_cuda and all(map(_has_masked_form, self.attacks))

    def _all_on_all(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        allotment: Allotment,
        start: Images | None,
        *,
        scored: bool,
    ) -> Found:
        """Return what `run_masked` finds."""
        self._check(x, y, allotment)
        starts = () if start is None else (start,)
        attacks = [attack for attack in self.attacks if isinstance(attack, LockstepAPGD)]

        def work(*tensors: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
            x, *rest = tensors
            x = x.detach().to(work_dtype(x))
            with attacking(model), torch.no_grad():
                return tuple(run_masked(model, attacks, x, *rest, scored=scored))

        # A scored search is a probe, or of survivors, whose number changes: not worth a recording.
        run = run_directly if scored else self.run
        key = ("mixed", self.attacks, model.training, len(starts))
        return Found(*run(key, work, (x, y, allotment.index, *starts)))

    def _check(self, x: Images, y: Labels, allotment: Allotment) -> None:
        check_batch(x, y)
        if (len(allotment.groups), allotment.count) != (len(x), len(self.attacks)):
            raise InputError(
                f"allotment: it must give {len(x)} images to {len(self.attacks)} attacks, got one "
                f"of {len(allotment.groups)} to {allotment.count}."
            )

    def _found(
        self,
        begun: Callable[..., Group],
        taken: Callable[[Attack, Images, Labels], Found],
        model: nn.Module,
        x: Images,
        y: Labels,
        allotment: Allotment,
        start: Images | None,
        first: Answer | None,
    ) -> Found:
        """Run those that share passes, begun by a function, and let another take the others."""
        self._check(x, y, allotment)
        x = x.detach().to(work_dtype(x))
        with attacking(model), torch.no_grad():
            together = self._groups(begun, model, x, y, allotment, start)
            if first is not None:
                parts = zip(*(allotment.parted(part) for part in first), strict=True)
                said = [Answer(*part) for part in parts]
                together = {k: group.moved(said[k], 0) for k, group in together.items()}
            done = run(model, list(together.values()), done=int(first is not None))
            found = dict(zip(together, done, strict=True))
            rows = zip(self.attacks, allotment.parted(x), allotment.parted(y), strict=True)
            for number, (attack, images, labels) in enumerate(rows):
                if len(images) and number not in found:
                    found[number] = taken(attack, images, labels)
        columns = zip(*(found[number] for number in sorted(found)), strict=True)
        return Found(*map(allotment.merged, columns))

    def _groups(
        self,
        begun: Callable[..., Group],
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
            number: begun(attack, model, images, labels, begin)
            for number, (attack, images, labels, begin) in enumerate(rows)
            if len(images) and isinstance(attack, LockstepAPGD)
        }


def _has_masked_form(attack: Attack) -> bool:
    """Tell whether an attack moves images by their logits and labels alone."""
    if not isinstance(attack, LockstepAPGD):
        return False
    objective = attack.objective
    return isinstance(objective, LogitObjective) and not objective.targeted
