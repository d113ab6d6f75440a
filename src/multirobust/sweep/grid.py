"""Grids: every combination of some settings, each with a name that a folder can have."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from multirobust.errors import InputError

__all__ = ["Point", "points_of"]


@final
@dataclass(frozen=True)
class Point:
    """One combination.

    Args:
        name: Such as "defense.beta=4.0"; empty where nothing varies.
        overrides: As after `--set`.
    """

    name: str = ""
    overrides: tuple[str, ...] = ()


def points_of(axes: Sequence[str]) -> list[Point]:
    """Return all combinations, the last axis varying fastest; one empty point for no axis.

    Args:
        axes: Each a field and its values, such as "training.peak_lr=0.05,0.1". A comma within
            brackets or quotes belongs to a value.

    Raises:
        InputError: If an axis is written otherwise, or names a field or a value twice.

    >>> [point.name for point in points_of(["training.peak_lr=0.1,0.2", "defense.beta=4.0"])]
    ['training.peak_lr=0.1_defense.beta=4.0', 'training.peak_lr=0.2_defense.beta=4.0']
    """
    parsed = [_axis(axis) for axis in axes]
    fields = [field for field, _ in parsed]
    if len(set(fields)) < len(fields):
        raise InputError(f"grid: each field may stand once, got {fields}; join its values.")
    choices = [[f"{field}={value}" for value in values] for field, values in parsed]
    return [Point("_".join(map(_name, chosen)), chosen) for chosen in itertools.product(*choices)]


def _axis(text: str) -> tuple[str, list[str]]:
    field, equals, rest = text.partition("=")
    values = [value.strip() for value in _split(rest)]
    if not equals or not field.strip() or not all(values):
        raise InputError(
            "grid: must be a field and its values, such as training.peak_lr=0.05,0.1, got "
            f"{text!r}."
        )
    if len(set(values)) < len(values):
        raise InputError(f"grid: each value may stand once, got {text!r}.")
    return field.strip(), values


def _split(text: str) -> list[str]:
    """Split at the commas that are in no bracket and no quote."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _name(override: str) -> str:
    """Return an override as a folder can be called, with a digest where characters are lost."""
    plain = re.sub(r"[^\w.+=-]+", "-", override).replace("=-", "=").strip("-")
    if plain == override:
        return plain
    return f"{plain}-{hashlib.sha256(override.encode()).hexdigest()[:6]}"
