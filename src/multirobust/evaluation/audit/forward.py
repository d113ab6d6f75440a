"""What the answers to clean images show: mode, randomness, probabilities, foreign normalization."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from multirobust.evaluation.audit.finding import Finding, counted
from multirobust.evaluation.audit.subject import Subject

__all__ = ["answer_findings", "is_random", "mode_findings", "normalization_findings"]

ROUNDING = 1e-4
"""Greatest difference of two answers, relative to the spread of the logits, taken for rounding.

Float32 rounds a logit to about 1e-6 of the spread. For a lower precision it is 4 units in the last
place, if these are more.
"""

GAIN = 0.25
"""Share of the images that another scale of the pixels must win to be called the model's own."""

ENOUGH = 10
"""Images that it must win at least, whatever the share."""

CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "the mean and std of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "the mean and std of CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "the mean and std of MNIST": ((0.1307,), (0.3081,)),
    "mean 0.5 and std 0.5": ((0.5,), (0.5,)),
    "pixels in 0..255": ((0.0,), (1 / 255,)),
}
"""Scales in common use, as mean and std; those of other channel counts are passed over."""


def mode_findings(model: nn.Module) -> Iterator[Finding]:
    """Report modules in training mode. Costs nothing."""
    training = [name or "the model itself" for name, part in model.named_modules() if part.training]
    if training:
        yield Finding(
            "training_mode",
            f"{len(training)} modules are in training mode, such as {training[-1]}: dropout "
            "then draws at random and BatchNorm mixes the images of a batch, so the accuracies are "
            "not those of the model in use. Call model.eval() first.",
        )


def is_random(subject: Subject) -> bool:
    """Whether two passes of the same images differ by more than rounding. One forward pass."""
    return _difference(subject, subject.ask(subject.x)) > _tolerance(subject)


def answer_findings(subject: Subject, *, random: bool) -> Iterator[Finding]:
    """Report NaN, infinite, random, batch-dependent answers and probabilities.

    Costs three forward passes.
    """
    logits, n = subject.logits, len(subject)
    broken = int(logits.isnan().any(1).sum())
    if broken:
        yield Finding(
            "nan_logits",
            f"{counted(broken, n)} get NaN logits without any attack: they count as errors, "
            "neither robust nor broken, and widen every accuracy to a range. Look for a division "
            "by zero, or an overflow in half precision.",
        )
    infinite = int(logits.isinf().any(1).sum())
    if infinite:
        yield Finding(
            "infinite_logits",
            f"{counted(infinite, n)} get an infinite logit, as from the logarithm of a probability "
            "that is rounded to 0: differences of such logits are infinite or NaN, and attacks "
            "lose their gradients. Return the logits from before the softmax.",
        )
    if random:
        yield _randomness(subject)
    else:
        yield from _batch_findings(subject)
    if _are_probabilities(subject.answers):
        yield Finding(
            "probabilities",
            f"all {n} answers are nonnegative and sum to 1: these are probabilities, not logits. "
            "Their gradients vanish where the model is sure, for every loss, so attacks fail and "
            "robust accuracies are too high. Drop the final softmax.",
        )


def normalization_findings(subject: Subject) -> Iterator[Finding]:
    """Report a scale of the pixels on which the model is far more accurate than on [0, 1].

    It must win a quarter of the images, and at least 10, over both the accuracy on [0, 1] and the
    share of the most frequent label. Costs a forward pass for each scale: up to 5.
    """
    n = len(subject)
    plain = int(subject.right.sum())
    start = max(plain, int(subject.y.bincount().max()))
    needed = max(GAIN * n, ENOUGH)
    if start + needed > n:
        return
    scales = _scales(subject.x)
    scores = {name: _accurate(subject, *scale) for name, scale in scales.items()}
    best = max(scores, key=lambda name: scores[name])
    mean, std = scales[best]
    if scores[best] >= start + needed:
        yield Finding(
            "normalized_outside",
            f"the model gets {counted(plain, n)} right as they are, in [0, 1], and "
            f"{counted(scores[best], n)} with {best}: it expects inputs on that scale, so "
            "its accuracies on [0, 1] mean nothing. Put the scaling into the model: nn.Sequential("
            f"Normalize({_numbers(mean)}, {_numbers(std)}), model), Normalize from "
            "multirobust.models.",
        )


def _scales(x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return name to mean and std, each (1, c or 1, 1, 1)."""
    std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
    scales = {"their own mean and std": (mean, std.clamp(min=1 / 255))}
    for name, (mean, std) in CONSTANTS.items():
        if len(mean) in (1, x.shape[1]):
            scales[name] = (x.new_tensor(mean), x.new_tensor(std))
    if x.shape[1] != 1:
        del scales["the mean and std of MNIST"]
    return {name: (m.view(1, -1, 1, 1), s.view(1, -1, 1, 1)) for name, (m, s) in scales.items()}


def _numbers(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.flatten().tolist()]


def _accurate(subject: Subject, mean: Tensor, std: Tensor) -> int:
    """Return how many images are right after (x - mean) / std; none if the model refuses them."""
    try:
        logits = subject.ask((subject.x - mean) / std)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # a model may insist on [0, 1]
        return 0
    return int(((logits.argmax(1) == subject.y) & ~logits.isnan().any(1)).sum())


def _randomness(subject: Subject) -> Finding:
    again = subject.ask(subject.x)
    changed = int((again.argmax(1) != subject.logits.argmax(1)).sum())
    return Finding(
        "randomness",
        "two passes of the same images give different logits, by up to "
        f"{_difference(subject, again):.2g} of their spread, and {counted(changed, len(subject))} "
        "change class: one gradient or one answer then says little, and an image may count as "
        "broken by chance or robust by luck. Use the autoattack_rand suite, which averages, or fix "
        "the randomness. The probes that compare attacks are left out.",
    )


def _batch_findings(subject: Subject) -> Iterator[Finding]:
    """Ask again with every other image replaced by its negative; the others must not change."""
    if len(subject) < 2 or subject.batch_size < 2:
        return
    rows = torch.arange(len(subject), device=subject.x.device) % 2 == 0
    seen = torch.empty_like(subject.logits)
    for kept in (rows, ~rows):
        mixed = torch.where(kept[:, None, None, None], subject.x, 1 - subject.x)
        seen[kept] = subject.ask(mixed).to(seen)[kept]
    difference = _difference(subject, seen)
    if difference > _tolerance(subject):
        yield Finding(
            "batch_dependence",
            f"the logits of an image change by up to {difference:.2g} of their spread with the "
            "other images of its batch: accuracies then depend on the batch size, and an attack "
            "on a batch is no attack on an image. Use running statistics: model.eval().",
        )


def _difference(subject: Subject, logits: Tensor) -> float:
    """Return the greatest difference to the first answer, relative to that answer's spread."""
    first = subject.logits
    if not torch.equal(first.isfinite(), logits.isfinite()):
        return torch.inf
    known = first.isfinite()
    if not known.any():
        return 0.0
    spread = (first[known].max() - first[known].min()).clamp(min=torch.finfo(first.dtype).tiny)
    return float((logits.to(first) - first)[known].abs().max() / spread)


def _tolerance(subject: Subject) -> float:
    return max(ROUNDING, 4 * torch.finfo(subject.answers.dtype).eps)


def _are_probabilities(answers: Tensor) -> bool:
    """Whether all rows are nonnegative and sum to 1, but for rounding."""
    tolerance = max(1e-3, 4 * torch.finfo(answers.dtype).eps)
    sums_to_one = (answers.float().sum(1) - 1).abs() < tolerance
    return bool(((answers >= 0).all(1) & sums_to_one).all())
