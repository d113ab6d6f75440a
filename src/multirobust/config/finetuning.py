"""What is published for fine-tuning a robust model with another defense, in a few epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multirobust.config.sections import Recipe

__all__ = ["FINE_TUNING", "departures", "fine_tuning_overrides", "followed"]

FINE_TUNING: Mapping[str, Any] = {
    "training.epochs": 3,
    "training.schedule": "piecewise",
    "training.peak_lr": 0.05,
    "attack.batch_norm": "running",
    "defense.ramp_pairing": 2.0,
    "defense.ramp_projection": 0.0,
}
"""The published settings, by field.

Three epochs with rates of 0.05, 0.005 and 0.0005 (drops after each third, `training.drops`), and
BatchNorm in evaluation mode during the attacks, are what E-AT has for linf-robust models on
CIFAR-10; the pairing of 2 without gradient projection is that of RAMP.

References: Croce and Hein, Adversarial robustness against multiple and single lp-threat models via
quick fine-tuning of robust classifiers, ICML 2022. Jiang and Singh, RAMP: Boosting adversarial
robustness against multiple lp perturbations for universal robustness, NeurIPS 2024.
"""

_OF_RAMP = ("defense.ramp_pairing", "defense.ramp_projection")
_OWN_BATCH_NORM = {"e_at", "ramp", "standard"}
"""Defenses whose attacks do not read `attack.batch_norm`."""


def fine_tuning_overrides() -> list[str]:
    """Return the published settings as overrides of a recipe."""
    return [f"{field}={value!r}" for field, value in FINE_TUNING.items()]


def departures(recipe: Recipe, said: Sequence[str] = ()) -> str:
    """Say where a recipe that starts from a model departs from the published fine-tuning.

    Args:
        recipe: What is trained.
        said: Overrides that the user wrote; their fields are meant as they are.

    Returns:
        Such as "training.epochs 10 (3), training.peak_lr 0.21 (0.05)", published values in
        brackets; empty if there is nothing to say. Fields that none of its defenses reads do not
        count.
    """
    found = []
    for field, published, value in _meant(recipe, said):
        if value != published:
            found.append(f"{field} {value} ({published})")
    return ", ".join(found)


def followed(recipe: Recipe, said: Sequence[str] = ()) -> str:
    """Say which of the published settings a recipe has, such as "training.epochs 3".

    Args:
        recipe: What is trained.
        said: As in `departures`.
    """
    meant = _meant(recipe, said)
    return ", ".join(f"{field} {value}" for field, published, value in meant if value == published)


def _meant(recipe: Recipe, said: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """Return field, published value and the recipe's, of those that are read and nobody said."""
    named = {text.partition("=")[0].strip() for text in said}
    unread = {*named, *_unread(recipe.defenses)}
    if recipe.training.passes is not None:
        unread.add("training.epochs")
    found = []
    for field, published in FINE_TUNING.items():
        section, name = field.split(".")
        if not unread & {field, section}:
            found.append((field, published, getattr(getattr(recipe, section), name)))
    return found


def _unread(defenses: Sequence[str]) -> set[str]:
    """Return the fields of the published settings that none of these defenses reads."""
    unread = set() if "ramp" in defenses else {*_OF_RAMP}
    return unread | ({"attack.batch_norm"} if {*defenses} <= _OWN_BATCH_NORM else set())
