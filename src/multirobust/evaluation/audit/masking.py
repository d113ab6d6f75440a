"""What small attacks show: whether the gradient leads to adversarial images at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from multirobust.attacks import PGD, CrossEntropy, Square
from multirobust.evaluation.audit.finding import Finding, counted
from multirobust.evaluation.audit.subject import Subject
from multirobust.evaluation.intervals import wilson
from multirobust.threats import Threat

__all__ = ["masking_findings"]

FEW, MANY = 5, 20
"""Steps of the two PGD runs; the steps of both add up to twice the radius."""

QUERIES = 200
"""Of the random search."""

DOUBT = 0.05
"""Share of the images above which failures of the gradient attack are no longer chance.

The lower end of their share's 95 % Wilson interval must exceed it, as for 7 of 64 images.
"""

FAILURES = 5
"""How many there must be at least."""

STANDING = 8
"""Images that few steps must leave for a comparison with more steps."""


MEANINGS = {
    "black_box_beats_white_box": (
        "with useful gradients it is the other way round, so gradient attacks overstate the robust "
        "accuracy. Use a suite with Square and attacks on the margin, such as autoattack, and look "
        "for what masks the gradient."
    ),
    "survives_large_radius": (
        "there each of them can be turned into one gray image, which the model gives another "
        "class, so no model is robust. The gradient misleads the attack, and robust accuracies are "
        "too high. Look for what masks it; trust black-box attacks and a surrogate gradient."
    ),
    "steps_do_not_help": (
        "the gradient does not point uphill, so gradient attacks are near chance and robust "
        "accuracies too high. Look for rounding, thresholds or a gradient that is not the "
        "model's; trust black-box attacks and a surrogate gradient."
    ),
}
"""Code of a finding to what it means and the way out."""


class _Sign(NamedTuple):
    """What was seen in one threat."""

    code: str
    seen: str


class _Ascent(NamedTuple):
    """Loss and verdict of each image after PGD from the clean image."""

    loss: Tensor
    stands: Tensor


def masking_findings(
    subject: Subject, threats: Mapping[str, Threat], *, random: bool, seed: int
) -> Iterator[Finding]:
    """Report signs that gradients mislead, for the first threat of each norm.

    On the n images that the model gets right, a threat costs 25 n forward-backward passes and, on
    those that PGD leaves, 20 more and 200 forward passes. Of a randomized model only the large
    radius is tried: elsewhere two runs differ by chance.
    """
    right = subject.of(subject.right)
    if not len(right):
        return
    signs = [
        sign
        for threat in {threat.norm: threat for threat in reversed(list(threats.values()))}.values()
        for sign in _signs(right, threat, random=random, seed=seed)
    ]
    for code, meaning in MEANINGS.items():
        seen = [sign.seen for sign in signs if sign.code == code]
        if seen:
            yield Finding(code, f"{'; '.join(seen)}: {meaning}")


def _signs(right: Subject, threat: Threat, *, random: bool, seed: int) -> Iterator[_Sign]:
    few, many = (_ascend(right, threat, steps) for steps in (FEW, MANY))
    left = few.stands & many.stands
    if not random:
        yield from _steps(few, many, threat)
        yield from _random_search(right, left, threat, seed)
    yield from _large_radius(right, left, threat)


def _ascend(subject: Subject, threat: Threat, steps: int) -> _Ascent:
    """Run PGD on cross-entropy. No random start: noise alone could do what the gradient cannot."""
    step_size = 2 * threat.radius / steps
    attack = PGD(threat=threat, steps=steps, step_size=step_size, random_start=False)
    return _Ascent(*subject.loss(CrossEntropy(), subject.attack(attack)))


def _steps(few: _Ascent, many: _Ascent, threat: Threat) -> Iterator[_Sign]:
    """Compare few and many steps on the images that few steps leave standing.

    Equal losses are no sign: a linear model is at its optimum after few. A lower loss is.
    """
    rows = few.stands
    change = (many.loss - few.loss)[rows]
    tolerance = 1e-3 * (1 + few.loss[rows].abs())
    lost, won = int((change < -tolerance).sum()), int((change > tolerance).sum())
    if len(change) >= STANDING and lost >= won and lost >= len(change) / 4:
        yield _Sign(
            "steps_do_not_help",
            f"in {threat.norm} (radius {threat.radius:.4g}), of {len(change)} images that {FEW} "
            f"steps of PGD leave standing, {MANY} finer steps end at a lower loss for {lost} and "
            f"at a higher one for {won}",
        )


def _random_search(right: Subject, left: Tensor, threat: Threat, seed: int) -> Iterator[_Sign]:
    """Let a random search try the images that PGD left."""
    standing = right.of(left)
    if not len(standing):
        return
    found = standing.attack(Square(threat=threat, iterations=QUERIES), seed)
    broken = int((~standing.loss(CrossEntropy(), found)[1]).sum())
    if _enough(broken, len(right)):
        yield _Sign(
            "black_box_beats_white_box",
            f"in {threat.norm} (radius {threat.radius:.4g}), a random search of {QUERIES} queries "
            f"breaks {counted(broken, len(right))} that PGD of {MANY} steps leaves standing",
        )


def _large_radius(right: Subject, left: Tensor, threat: Threat) -> Iterator[_Sign]:
    """Try the radius at which every image can become the same gray one.

    An image whose label is not the answer to gray has an adversarial image there: if PGD finds
    none, PGD is at fault, not the model robust.
    """
    gray = torch.full_like(right.x, 0.5)
    answer = int(right.ask(gray[:1]).argmax(1))
    breakable = right.y != answer
    tried = right.of(left & breakable)
    if not len(tried):
        return
    wide = replace(threat, radius=float(threat.distance(gray, right.x).max()))
    stand = int(_ascend(tried, wide, MANY).stands.sum())
    if _enough(stand, int(breakable.sum())):
        yield _Sign(
            "survives_large_radius",
            f"in {threat.norm} at radius {wide.radius:.4g}, {counted(stand, int(breakable.sum()))} "
            f"survive PGD of {MANY} steps",
        )


def _enough(count: int, total: int) -> bool:
    return count >= FAILURES and wilson(count / total, total)[0] > DOUBT
