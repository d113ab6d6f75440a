"""What one gradient of each clean image shows: none, NaN, or exactly zero."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from multirobust.attacks import CrossEntropy, Margin
from multirobust.errors import InputError, MultirobustError
from multirobust.evaluation.audit.finding import Finding, counted
from multirobust.evaluation.audit.subject import Subject

__all__ = ["gradient_findings"]

OBJECTIVES = {"cross-entropy": CrossEntropy(), "the margin": Margin()}


def gradient_findings(subject: Subject) -> tuple[Finding, ...]:
    """Report missing, NaN and zero gradients of the images that the model gets right.

    Costs two forward-backward passes. A zero gradient is an exact one: such an image stays where it
    is in every gradient attack on that loss, and counts as robust.
    """
    right = subject.of(subject.right)
    if not len(right):
        return ()
    try:
        gradients = {name: right.gradient(loss) for name, loss in OBJECTIVES.items()}
    except InputError:
        return (_missing("no gradient leads from the logits back to the images"),)
    except (torch.OutOfMemoryError, MultirobustError):
        raise
    except Exception as error:
        return (_missing(f"taking it raised {type(error).__name__}: {str(error)[:200]}"),)
    flat = {name: gradient.flatten(1) for name, gradient in gradients.items()}
    bad = {name: ~g.isfinite().all(1) for name, g in flat.items()}
    zero = {name: (g == 0).all(1) for name, g in flat.items()}
    return (*_not_finite(bad, len(right)), *_zero(zero, len(right)))


def _missing(why: str) -> Finding:
    return Finding(
        "no_gradients",
        f"the model has no input gradient: {why}. Gradient attacks cannot run, and an accuracy "
        "without them is no robust accuracy. Remove what detaches, rounds or leaves PyTorch inside "
        "the model, or give it a surrogate gradient.",
    )


def _not_finite(bad: dict[str, Tensor], n: int) -> Iterator[Finding]:
    if any(rows.any() for rows in bad.values()):
        yield Finding(
            "nan_gradients",
            f"the input gradient is NaN or infinite, of {_told(bad, n)}: an attack cannot follow "
            "it, so these images may count as robust without being attacked. Guard the input of "
            "roots, logarithms, norms and divisions inside the model.",
        )


def _zero(zero: dict[str, Tensor], n: int) -> Iterator[Finding]:
    cross_entropy, margin = (int(rows.sum()) for rows in zero.values())
    if not cross_entropy + margin:
        return
    if margin:
        way = (
            "Look for rounding, thresholds or saturation inside the model and give them a "
            "surrogate gradient; until then trust only black-box attacks such as Square."
        )
    else:
        way = (
            "The softmax is saturated: use attacks on the margin or DLR, which are blind to the "
            "scale of the logits, such as those of autoattack, or divide the logits by a constant."
        )
    yield Finding(
        "zero_gradients",
        f"the input gradient is exactly zero, of {_told(zero, n)}: gradient attacks on that loss "
        f"leave these images where they are, and they count as robust. {way}",
    )


def _told(rows: dict[str, Tensor], n: int) -> str:
    parts = (f"{name} for {counted(int(r.sum()), n)}" for name, r in rows.items())
    return " and of ".join(parts)
