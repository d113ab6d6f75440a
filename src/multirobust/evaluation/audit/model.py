"""The audit of a model before the attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from multirobust.data import Split
from multirobust.errors import InputError, MultirobustError
from multirobust.evaluation.audit.finding import Finding
from multirobust.evaluation.audit.forward import (
    answer_findings,
    is_random,
    mode_findings,
    normalization_findings,
)
from multirobust.evaluation.audit.gradients import gradient_findings
from multirobust.evaluation.audit.masking import masking_findings
from multirobust.evaluation.audit.subject import Subject, as_it_was
from multirobust.evaluation.classifier import device_of
from multirobust.threats import THREAT_PRESETS, Linf, Threat, threats_for

__all__ = ["audit_model"]


def audit_model(
    model: nn.Module,
    split: Split,
    *,
    images: int = 64,
    batch_size: int = 64,
    seed: int = 0,
    threats: Mapping[str, Threat] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Finding, ...]:
    """Look for what makes robust accuracies of a model meaningless, before it is attacked.

    The images are drawn from the split, as some are sorted by class. On n of them it costs at most
    10 n forward and 2 n forward-backward passes, and for each norm 45 n forward-backward passes
    and 200 forward passes for each image that these leave standing: seconds for a small model. The
    model, its mode and the global random generators are left as they were. No finding is no proof.

    Args:
        model: Maps images in [0, 1] to logits.
        split: Images and labels.
        images: How many to look at, at least 1.
        batch_size: Images a pass; bounds the memory, and is halved where it runs out.
        seed: Of the choice of images and of the random search.
        threats: The balls to be attacked, by name. Of several in one norm the first is tried; with
            none, the probes that attack are left out. None takes the benchmark balls of the data
            set that the split belongs to, else linf at 8 / 255.
        device: Where to run; None takes that of the model's parameters.

    Returns:
        The findings, those to mend first at the front; empty for a sound model.

    Raises:
        InputError: If a number is below 1, or the model does not return logits (b, classes).
    """
    for name, value in (("images", images), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"audit_model: {name} must be a whole number, 1 or more, got {value!r}."
            )
    device = torch.device(device) if device is not None else device_of(model)
    subject = _subject(model, split, min(images, len(split)), batch_size, seed, device)
    threats = _default_threats(split) if threats is None else threats
    while True:
        try:
            with as_it_was(model, device):
                return _findings(subject, threats, seed)
        except (torch.OutOfMemoryError, MemoryError):
            if subject.batch_size == 1:
                raise
        subject = replace(subject, batch_size=subject.batch_size // 2)


def _findings(subject: Subject, threats: Mapping[str, Threat], seed: int) -> tuple[Finding, ...]:
    """Return all findings. Without gradients the attacks that need them are not tried."""
    found = [*mode_findings(subject.model)]
    probes: list[Callable[[bool], Iterable[Finding]]] = [
        lambda random: answer_findings(subject, random=random),
        lambda random: normalization_findings(subject),
        lambda random: gradient_findings(subject),
        lambda random: masking_findings(subject, threats, random=random, seed=seed),
    ]
    try:
        random = is_random(subject)
        for probe in probes:
            found += probe(random)
            if "no_gradients" in {finding.code for finding in found}:
                break
    except (MultirobustError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        found.append(_raised(error))
    return tuple(found)


def _raised(error: Exception) -> Finding:
    return Finding(
        "raises",
        f"the model raised {type(error).__name__}: {str(error)[:200]}. Images for which it does so "
        "count as errors, neither robust nor broken, and the rest of the audit was not made. Mend "
        "the model for all images in [0, 1].",
    )


def _subject(
    model: nn.Module, split: Split, images: int, batch_size: int, seed: int, device: torch.device
) -> Subject:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    index = order[:images].sort().values.to(split.images.device)
    x, y = split.floats(index).to(device), split.labels[index].to(device)
    return Subject(model, x, y, batch_size)


def _default_threats(split: Split) -> Mapping[str, Threat]:
    if split.source in THREAT_PRESETS:
        return threats_for(split.source)
    return {"linf": Linf(8 / 255)}
