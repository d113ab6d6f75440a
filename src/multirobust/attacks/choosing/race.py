"""A sampler that lets all attacks begin on each image and finishes the one that got farthest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack, attacking
from multirobust.attacks.choosing.sampler import Chosen, MixedSampler
from multirobust.attacks.choosing.shares import Shares
from multirobust.attacks.lockstep_apgd import LockstepAPGD
from multirobust.attacks.lockstep_groups import Answer, Found, Group, alone, ask, run
from multirobust.attacks.objectives import LogitObjective, Objective
from multirobust.errors import InputError
from multirobust.ranks import Part
from multirobust.threats import Allotment
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels

__all__ = ["Race"]


@final
class Race(MixedSampler):
    """Each attack takes some steps on all images; each image goes on with one of them.

    The race is for the greatest cross-entropy of the strongest iterate so far, under quotas: the
    images get the attacks of greatest total, in groups of the sizes that the shares ask for. The
    chosen attack goes on from where it is, so that its images are those that it alone would find.

    Costs T + (k - 1) laps forward-backward passes and a forward pass for k attacks of
    `LockstepAPGD` with one objective, whose first pass is the same; for each further objective one
    more. With a start of its own each attack asks for itself: T + (k - 1) (laps + 1). An attack of
    another kind runs to its end on all images. Who goes on is decided on the host, once a step.

    Args:
        attacks: See `MixedSampler`; those of `LockstepAPGD` have a loss of logits and label.
        shares: The quotas.
        quotas: Whether they count; without, each image goes on with its best.
        laps: Steps before the choice, at least 1 and below the steps of the attacks.
        seed: See `MixedSampler`.
        patience: See `MixedSampler`.

    Raises:
        InputError: If laps is out of range or an objective looks at more than logits and label.

    References: Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter
    optimization, AISTATS 2016 (successive halving, here with one cut).
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        shares: Shares,
        *,
        quotas: bool = True,
        laps: int = 1,
        seed: int = 0,
        patience: int = 500,
    ):
        super().__init__(attacks, shares, seed=seed, patience=patience)
        if not 1 <= laps < max(self.engine.steps, 2):
            raise InputError(
                f"Race: laps must be at least 1 and below the {self.engine.steps} steps of the "
                f"attacks, got {laps!r}."
            )
        for attack in self.engine.attacks:
            objective = attack.objective if isinstance(attack, LockstepAPGD) else None
            if objective and (not isinstance(objective, LogitObjective) or objective.targeted):
                raise InputError(
                    "Race: images change their group only under an objective of their logits and "
                    f"label, such as CrossEntropy or DLR, got {objective!r}."
                )
        self.by_quota, self.laps = quotas, laps

    def choose(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        place: Part,
        start: Images | None,
        generator: torch.Generator | None,
    ) -> Chosen:
        """See `MixedSampler.choose`."""
        x, quotas = x.detach().to(work_dtype(x)), self.quotas
        with attacking(model), torch.no_grad():
            runners = self._laps(model, x, y, start, generator)
            losses = [_reached(runner) for runner in runners]
            values = torch.stack(losses, dim=1).nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6)
            allotment = self._assigned(values, place, quotas, explore=0.0)
            x_adv = self._finished(model, runners, allotment)
        weights = self._weights(allotment, quotas, x)
        return Chosen(x_adv, allotment, weights, x.new_zeros((len(x), 0)))

    def _laps(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        start: Images | None,
        generator: torch.Generator | None,
    ) -> list[Group | Found]:
        """Let every attack take its laps, each from the same first answer if it may."""
        first: dict[Objective, Answer] = {}
        runners: list[Group | Found] = []
        for attack in self.engine.attacks:
            if not isinstance(attack, LockstepAPGD):
                runners.append(alone(attack, model, x, y, generator=generator))
                continue
            runner = Group.at(attack, model, x, y, start)
            for step in range(self.laps + 1):
                answer = first.get(attack.objective) if step == 0 and start is None else None
                if answer is None:
                    (answer,) = ask(model, [runner])
                if step == 0:
                    first[attack.objective] = answer
                runner = runner.moved(answer, step)
            runners.append(runner)
        return runners

    def _finished(
        self, model: nn.Module, runners: list[Group | Found], allotment: Allotment
    ) -> Tensor:
        """Let each image go on with its attack, all of them together."""
        places = allotment.order.split(allotment.sizes)
        chosen = zip(runners, places, strict=True)
        groups = [
            runner.rows(index)
            for runner, index in chosen
            if isinstance(runner, Group) and len(index)
        ]
        found = iter(run(model, groups, done=self.laps + 1))
        parts = []
        for runner, index in zip(runners, places, strict=True):
            if len(index):
                own = isinstance(runner, Group)
                parts.append(next(found).images if own else runner.images[index])
        return allotment.merged(parts)


def _reached(runner: Group | Found) -> Tensor:
    """Return the cross-entropy of the strongest image so far, (b,)."""
    if isinstance(runner, Found):
        return runner.loss
    assert runner.scores is not None
    return runner.scores[1]
