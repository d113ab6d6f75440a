"""The audit of finished outcomes: what attacks say about each other, from the facts alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import permutations

import numpy as np

from multirobust.evaluation.audit.finding import Finding, counted
from multirobust.evaluation.outcomes import AttackColumn, Outcomes
from multirobust.evaluation.runner import NAN
from multirobust.evaluation.state import State

__all__ = ["audit_outcomes"]

BLACK_BOX = re.compile(r"square|salt.?and.?pepper|black.?box", re.IGNORECASE)
"""Names and settings of attacks that never ask for a gradient."""

DOUBT = 0.002
"""Share of the images that a black-box attack may break alone (that of the AutoAttack code)."""

TOLERANCE = 1e-5
"""Relative excess over a radius that counts as rounding, as for the attacks' own images."""

ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
"""Threat to the order of its norm."""


def audit_outcomes(outcomes: Outcomes) -> tuple[Finding, ...]:
    """Look in outcomes for what contradicts their robust accuracies.

    Only what attacks did is compared: an image that an attack was not run on, or that ended in an
    error, counts neither way. If the manifest holds the "shape" of an image, (c, h, w), balls are
    also compared from larger to smaller norms.

    Args:
        outcomes: Of one evaluation.

    Returns:
        The findings; empty if nothing is contradicted.
    """
    return (
        *_clean_errors(outcomes),
        *_errors(outcomes),
        *_black_box(outcomes),
        *_nested(outcomes),
    )


def _clean_errors(outcomes: Outcomes) -> Iterator[Finding]:
    failed = int((outcomes.predictions < 0).sum())
    reasons = _reasons(outcomes, "clean")
    others = [reason for reason in reasons if reason != NAN]
    if failed:
        yield Finding(
            "no_prediction" if others or not reasons else "nan_logits",
            f"{counted(failed, len(outcomes))} have no clean prediction{_why(others or reasons)}: "
            "they are neither robust nor broken and widen every accuracy to a range. Mend the "
            "model for these images.",
        )


def _errors(outcomes: Outcomes) -> Iterator[Finding]:
    """Report attacks that ended in errors; images outside the ball are a finding of their own."""
    known = outcomes.predictions >= 0
    failed = {
        column.name: int((known & (column.states == State.ERROR)).sum())
        for column in outcomes.columns
    }
    outside = [name for name in failed if _outside(_reasons(outcomes, name))]
    if outside:
        yield Finding(
            "outside_ball",
            f"images of {', '.join(outside)} lay outside the ball or the pixel box; they count as "
            f"errors ({_listed(failed, outside, len(outcomes))}). The attack is at fault, or its "
            "radius is not the threat's: project its images with threat.project.",
        )
    others = [
        name
        for name, count in failed.items()
        if count and not all(map(_is_outside, _reasons(outcomes, name) or [""]))
    ]
    if others:
        reasons = sorted(
            {r for name in others for r in _reasons(outcomes, name) if not _is_outside(r)}
        )
        yield Finding(
            "errors",
            f"attacks ended in errors ({_listed(failed, others, len(outcomes))}){_why(reasons)}: "
            "these images are neither robust nor broken, and accuracies become ranges. Mend the "
            "cause, or quote the range.",
        )


def _black_box(outcomes: Outcomes) -> Iterator[Finding]:
    """Compare the attacks of each threat on the images that all its white-box attacks left."""
    right = outcomes.predictions == outcomes.labels
    for threat in outcomes.threats:
        columns = [column for column in outcomes.columns if column.threat == threat]
        blind = [column for column in columns if _is_black_box(column)]
        white = [column for column in columns if not _is_black_box(column)]
        if not (blind and white):
            continue
        broken = np.any([column.states == State.BROKEN for column in blind], axis=0)
        alone = int((right & broken & _survived(white)).sum())
        if alone > DOUBT * len(outcomes):
            yield Finding(
                "black_box_beats_white_box",
                f"in {threat}, {counted(alone, len(outcomes))} are broken by "
                f"{' or '.join(column.name for column in blind)} alone, while every gradient "
                f"attack ({', '.join(column.name for column in white)}) left them standing: with "
                "useful gradients it is the other way round. Gradients are masked or the gradient "
                "attacks too weak; run stronger ones, and Square with more queries.",
            )


def _nested(outcomes: Outcomes) -> Iterator[Finding]:
    """Report images of one threat's attacks that lie within the ball of another that held.

    The distance of an adversarial image bounds its distance in every other norm. If that is at most
    the other threat's radius, the image breaks the model there too.
    """
    right = outcomes.predictions == outcomes.labels
    known = [threat for threat in outcomes.threats if _norm(threat)]
    for found, held in permutations(known, 2):
        factor = _factor(_norm(found), _norm(held), outcomes.manifest.get("shape"))
        if not np.isfinite(factor):
            continue
        if math.isinf(factor):
            continue
        breaking = [column for column in outcomes.columns if column.threat == found]
        holding = [column for column in outcomes.columns if column.threat == held]
        radius = holding[0].radius
        within = np.any(
            [
                (column.states == State.BROKEN)
                & (column.distances.astype(np.float64) * factor <= radius * (1 + TOLERANCE))
                for column in breaking
            ],
            axis=0,
        )
        missed = int((right & within & _survived(holding)).sum())
        if missed:
            yield Finding(
                "nested_norms",
                f"{counted(missed, len(outcomes))} survive every attack in {held} (radius "
                f"{radius:.4g}), but attacks in {found} found adversarial images of them that lie "
                f"within that ball too: these are broken in {held}, and its accuracy is "
                f"{100 * missed / len(outcomes):.1f} points too high. The attacks in {held} are "
                "too weak or their gradients masked: run stronger ones. The union is right.",
            )


def _survived(columns: list[AttackColumn]) -> np.ndarray:
    """Return which images some of these attacks tried, and all that did left standing."""
    states = np.stack([column.states for column in columns])
    failed = (states == State.BROKEN) | (states == State.ERROR)
    return (states == State.SURVIVED).any(0) & ~failed.any(0)


def _factor(found: str, held: str, shape: object) -> float:
    """Return the least number that a distance in one norm times it bounds in the other.

    Of n pixels, the norm of order q is at most that of order p for p <= q, and at most
    n ** (1 / q - 1 / p) times it for p > q.
    """
    p, q = ORDERS[found], ORDERS[held]
    if p <= q:
        return 1.0
    if not isinstance(shape, (list, tuple)):
        return math.inf
    return math.prod(shape) ** (1 / q - 1 / p)


def _norm(threat: str) -> str:
    """Return the norm that a threat's name starts with, or nothing for another kind of threat."""
    first = re.split(r"[^a-z0-9]", threat, maxsplit=1)[0]
    return first if first in ORDERS else ""


def _is_black_box(column: AttackColumn) -> bool:
    return bool(BLACK_BOX.search(f"{column.name} {column.settings}"))


def _reasons(outcomes: Outcomes, name: str) -> list[str]:
    errors = outcomes.manifest.get("errors", {})
    return [str(line) for line in errors.get(name, [])]


def _is_outside(reason: str) -> bool:
    return "outside the" in reason


def _outside(reasons: list[str]) -> bool:
    return any(map(_is_outside, reasons))


def _listed(failed: dict[str, int], names: list[str], n: int) -> str:
    return "; ".join(f"{name}: {counted(failed[name], n)}" for name in names)


def _why(reasons: list[str]) -> str:
    return f", such as {reasons[0]!r}" if reasons else ""
