"""A tournament of targets: passes go to the images and classes whose contest is still open.

The published suites spend the same budget on every image that stands. Yet after a few passes most
margins either have crossed zero or have come to rest far from it. Here short runs come first, and
longer ones only for the classes whose margin, extrapolated, may still reach zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn

from multirobust.attacks.apgd import APGD
from multirobust.attacks.base import Attack, attacking, check_batch
from multirobust.attacks.contest import Contest, Rows, joined, selected
from multirobust.attacks.fab import FAB
from multirobust.attacks.objectives import TargetedDLR
from multirobust.attacks.square import Square
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Threat
from multirobust.types import Images, Labels

__all__ = ["Round", "Tournament"]

_NORMS = ("linf", "l2", "l1")


@final
@dataclass(frozen=True, kw_only=True)
class Round:
    """Runs of targeted APGD of one length.

    Args:
        iterations: Forward-backward passes of each run, at least 3.
        targets: Runs of each image at most, those of its classes of greatest margin; at least 1.
        resumes: Start from the best point of the round before, rather than anew.
    """

    iterations: int
    targets: int
    resumes: bool = False

    def __post_init__(self) -> None:
        for name, least in (("iterations", 3), ("targets", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"Round: {name} must be at least {least}, got {getattr(self, name)!r}."
                )


@final
@dataclass(frozen=True, kw_only=True)
class Tournament(Attack):
    """APGD with budgets that grow where they decide, and a fallback for masked gradients.

    1. Opening: a short untargeted run with cross-entropy.
    2. Rounds: every image that stands is run against its wrong classes. The best margin of a run
       and what it gained in its second half say whether a longer one could succeed: only runs with
       `best + reach * gain + slack * |clean margin| >= 0` go on to the next round.
    3. Probe: a short random search. Where it beats the gradient's best margin or breaks the image,
       or the gradient was zero in half of the first round's passes, gradients look masked. Without
       it, if more than `masked_share` of the images that stand have a zero gradient.
    4. Fallback: Square and FAB-T with their published budgets, only on images that look masked, or
       on all that stand if more than `masked_share` of them do. Square lets an image go after a
       twelfth, a sixth, a third or half of its queries if three quarters of the gain of the latter
       half of those asked, for each doubling that is left, would leave more than `fallback_slack`
       of the clean margin.

    In l1 runs that start anew are wide (see `APGD`). An image leaves when it is broken. The more
    images it is given at once, the better it fills a batch: use `run`.

    Args:
        threat: The ball, in linf, l2 or l1.
        opening: Iterations of the untargeted run, at least 3.
        rounds: At least one; the first does not resume.
        reach: How many times the gain of a run's second half is thought to be still ahead.
        slack: Share of the clean margin that may be left over even so.
        probe: Queries of the random search, at least 1.
        masked_share: From 0 to 1. Above it, masking is taken to be the model's, not the image's.
        fallback_slack: Share of the clean margin that may be left over in the fallback.
        square: Proposals of the fallback's Square after its start, 0 to leave it out.
        fab: Iterations of the fallback's FAB-T with 9 targets, 0 to leave it out.
        seed: Of the fallback's Square (see there).

    Raises:
        InputError: If a number is out of range, or the threat is of another norm.

    References: The attacks: see `APGD`, `FAB` and `Square`. Dividing a budget by halting what falls
    behind: Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter
    optimization, AISTATS 2016.
    """

    threat: Threat
    opening: int = 40
    rounds: tuple[Round, ...] = (
        Round(iterations=20, targets=9),
        Round(iterations=50, targets=5, resumes=True),
        Round(iterations=100, targets=3),
        Round(iterations=100, targets=3),
    )
    reach: float = 3.0
    slack: float = 0.1
    probe: int = 100
    masked_share: float = 0.1
    fallback_slack: float = 0.2
    square: int = 5000
    fab: int = 100
    seed: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.threat.norm not in _NORMS:
            raise lookup_error("norm of the threat of Tournament", self.threat.norm, _NORMS)
        if not self.rounds or self.rounds[0].resumes:
            raise InputError(
                "Tournament: rounds must be at least one, the first with resumes=False, got "
                f"{self.rounds!r}."
            )
        least = {"opening": 3, "reach": 0, "slack": 0, "probe": 1, "square": 0, "fab": 0}
        least["fallback_slack"] = 0
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise InputError(
                    f"Tournament: {name} must be at least {bound}, got {getattr(self, name)!r}."
                )
        if not 0 <= self.masked_share <= 1:
            raise InputError(
                f"Tournament: masked_share must be in [0, 1], got {self.masked_share!r}."
            )

    @property
    def threats(self) -> tuple[Threat, ...]:
        """Its one threat."""
        return (self.threat,)

    @property
    def most_passes(self) -> int:
        """Most forward and backward passes that an image can cost without the fallback."""
        runs = sum(each.targets * each.iterations for each in self.rounds)
        return 2 * (self.opening + runs) + 1 + self.probe

    def seeded(self, seed: int) -> Tournament:
        """See `Attack.seeded`. Its fallback searches an image as the `Square` of that seed does."""
        return replace(self, seed=seed)

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`. Returns the clean image where it found no adversarial one."""
        return self.run(model, x, y, batch_size=len(x), generator=generator)

    def run(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.run`. Besides the batch it holds one image for each run that goes on."""
        check_batch(x, y)
        if batch_size < 1:
            raise InputError(f"Tournament: batch_size must be at least 1, got {batch_size}.")
        generator = generator or torch.Generator(x.device).manual_seed(0)
        with attacking(model), torch.no_grad():
            contest = Contest(model, x.detach(), y, batch_size, generator)
            self._open(contest)
            self._play(contest)
            self._fall_back(contest)
        return contest.found

    def _open(self, contest: Contest) -> None:
        """Run cross-entropy on every image."""
        attack = self._apgd(APGD(threat=self.threat, iterations=self.opening), anew=True)
        for part in contest.untargeted():
            contest.climb(attack, part)

    def _play(self, contest: Contest) -> None:
        """Run round after round of the targets that may still reach zero."""
        rows = contest.targeted(self.rounds[0].targets)
        for i, each in enumerate(self.rounds):
            targeted = APGD(
                threat=self.threat,
                iterations=each.iterations,
                objective=TargetedDLR(),
                targets=each.targets,
            )
            attack = self._apgd(targeted, anew=not each.resumes)
            following = self.rounds[i + 1].targets if i + 1 < len(self.rounds) else 0
            played = []
            for part in contest.batches(rows):
                played.append(contest.climb(attack, part, resumes=each.resumes, counts=i == 0))
                played[-1] = self._open_ones(contest, played[-1], following)
            rows = self._open_ones(contest, joined(played), following) if played else rows

    def _apgd(self, attack: APGD, *, anew: bool) -> APGD:
        """Return the attack, wide where that is defined and the run starts anew."""
        return replace(attack, wide=anew and self.threat.norm == "l1")

    def _open_ones(self, contest: Contest, rows: Rows, most: int) -> Rows:
        """Return the rows that may still reach zero, of each image the `most` of best margin."""
        best, image = rows["best"], rows["image"]
        gain = (best - rows["half"]).nan_to_num(nan=0.0)
        left = self.reach * gain + self.slack * contest.clean[image].abs()
        rows = selected(rows, contest.standing[image] & (best + left >= 0))
        order = rows["best"].argsort(descending=True, stable=True)
        order = order[rows["image"][order].argsort(stable=True)]
        image = rows["image"][order]
        rank = torch.arange(len(order), device=order.device) - torch.searchsorted(image, image)
        return selected(rows, order[rank < most])

    def _fall_back(self, contest: Contest) -> None:
        """Attack what looks masked without trusting the gradients."""
        masked = self._masked(contest)
        if self.square:
            search = Square(threat=self.threat, iterations=self.square + 1, seed=self.seed)
            for part in contest.untargeted(masked):
                contest.climb(search, part, slack=self.fallback_slack)
        index = (masked & contest.standing & ~contest.flat).nonzero().squeeze(1)
        if self.fab and len(index):
            contest.adopt(index, FAB(threat=self.threat, iterations=self.fab))

    def _masked(self, contest: Contest) -> Tensor:
        """Return which images look masked, (n,)."""
        gradients = contest.margin.clone()
        standing = contest.standing.clone()
        if self._is_of_the_model(standing & contest.flat, standing):
            return standing
        search = Square(threat=self.threat, iterations=self.probe)
        for part in contest.untargeted():
            contest.climb(search, part)
        masked = standing & (contest.flat | (contest.margin > gradients))
        return standing if self._is_of_the_model(masked, standing) else masked

    def _is_of_the_model(self, masked: Tensor, standing: Tensor) -> bool:
        return int(masked.sum()) > self.masked_share * int(standing.sum())
