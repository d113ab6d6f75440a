"""What each attack of a suite adds to the others, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from multirobust.errors import InputError
from multirobust.evaluation.intervals import Estimate
from multirobust.evaluation.outcomes import Outcomes
from multirobust.evaluation.state import State

__all__ = ["Contribution", "contributions"]


@final
@dataclass(frozen=True)
class Contribution:
    """One attack among the others.

    Args:
        attack: Its name.
        threat: The name of its threat.
        alone: Accuracy under this attack; a range where it was not run on all images.
        seen: Images that it was run on.
        first: Correctly classified images that no earlier attack of the suite had broken.
        only: Correctly classified images that no other attack broke.
        seconds: Wall time.
        passes: Forward and backward passes for each image of the evaluation.
        errors: Images on which it ended in an error.
    """

    attack: str
    threat: str
    alone: Estimate
    seen: int
    first: int
    only: int
    seconds: float
    passes: float
    errors: int


def contributions(outcomes: Outcomes) -> list[Contribution]:
    """Return what each attack adds, in the order of the suite.

    An image that the model gets wrong without any attack is nobody's.

    Raises:
        InputError: If there is no attack.
    """
    if not outcomes.columns:
        raise InputError("contributions: needs at least one attack, got none; evaluate a suite.")
    right = outcomes.predictions == outcomes.labels
    broken = np.array([column.states == State.BROKEN for column in outcomes.columns]) & right
    found = []
    for place, column in enumerate(outcomes.columns):
        before = broken[:place].any(axis=0)
        others = np.delete(broken, place, axis=0).any(axis=0)
        found.append(
            Contribution(
                attack=column.name,
                threat=column.threat,
                alone=outcomes.attack(column.name),
                seen=int((right & (column.states != State.SKIPPED)).sum()),
                first=int((broken[place] & ~before).sum()),
                only=int((broken[place] & ~others).sum()),
                seconds=column.seconds,
                passes=column.forwards + column.backwards,
                errors=int((right & (column.states == State.ERROR)).sum()),
            )
        )
    return found
