"""What one attack did to one image, and which facts about several cannot all be true."""

from __future__ import annotations

import enum
import math
from typing import Any, final

import numpy as np

from multirobust.errors import InputError

__all__ = ["State", "check_parts"]


@final
class State(enum.IntEnum):
    """What one attack did to one image."""

    SURVIVED = 0
    BROKEN = 1
    ERROR = 2
    """The attack or the model failed (an exception, NaN): neither robust nor broken."""
    SKIPPED = 3
    """Not attacked, since an earlier attack broke the image: says nothing of this attack."""


def check_parts(outcomes: Any) -> None:
    """Raise unless the parts of `Outcomes` fit together.

    Raises:
        InputError: It names the part.
    """
    _check_images(outcomes)
    _check_columns(outcomes)
    _check_skipped(outcomes)


def _check_images(outcomes: Any) -> None:
    n = len(outcomes.index)
    if n == 0:
        raise InputError("Outcomes: needs at least one image, got none; evaluate a larger split.")
    for name in ("labels", "predictions"):
        if len(getattr(outcomes, name)) != n:
            raise InputError(
                f"Outcomes: {name} must have one entry per image ({n}), got "
                f"{len(getattr(outcomes, name))}."
            )
    if len(np.unique(outcomes.index)) != n:
        raise InputError("Outcomes: index must not name an image twice; join disjoint shards only.")
    if outcomes.labels.min() < 0 or outcomes.predictions.min() < -1:
        raise InputError(
            f"Outcomes: labels must be at least 0 and predictions at least -1 (error), got "
            f"{outcomes.labels.min()} and {outcomes.predictions.min()}."
        )


def _check_columns(outcomes: Any) -> None:
    names = [column.name for column in outcomes.columns]
    if len(set(names)) != len(names):
        raise InputError(f"Outcomes: attack names must differ, got {names}; rename one of them.")
    radii: dict[str, float] = {}
    for column in outcomes.columns:
        where = f"Outcomes: attack {column.name!r}"
        if len(column.states) != len(outcomes):
            raise InputError(f"{where} has {len(column.states)} of {len(outcomes)} images.")
        if not math.isclose(radii.setdefault(column.threat, column.radius), column.radius):
            raise InputError(
                f"{where} has radius {column.radius:g} where an earlier attack of the threat "
                f"{column.threat!r} has {radii[column.threat]:g}; a worst case needs one radius."
            )
        failed = outcomes.predictions < 0
        wrong = ~failed & (outcomes.predictions != outcomes.labels)
        if np.any(column.states[wrong] != State.BROKEN):
            raise InputError(
                f"{where} does not count every image with a wrong clean prediction as broken; "
                f"store these as State.BROKEN with distance 0."
            )
        if np.any(column.states[failed] == State.SURVIVED):
            raise InputError(
                f"{where} counts images as survived whose clean prediction is an error (-1); "
                f"store these as State.ERROR."
            )


def _check_skipped(outcomes: Any) -> None:
    if not outcomes.columns:
        return
    states = np.stack([column.states for column in outcomes.columns])
    alone = (states == State.SKIPPED).any(axis=0) & ~(states == State.BROKEN).any(axis=0)
    if alone.any():
        raise InputError(
            f"Outcomes: {int(alone.sum())} images were skipped by an attack though none broke "
            "them; only what is broken already may be State.SKIPPED."
        )
