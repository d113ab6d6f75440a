"""The adversarial consistency loss (Eq. 7 and 8), and SAT with it and noise of a fixed kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.attacks import Sampler
from multirobust.attacks.choosing import Chosen, MixedSampler
from multirobust.attacks.objectives import at_least_float32
from multirobust.data import Batch
from multirobust.defenses.base import Defense, Loss, cross_entropy
from multirobust.defenses.mixed import heard_cross_entropy
from multirobust.defenses.noise_sources import GaussianNoise, NoiseSource
from multirobust.errors import InputError, lookup_error
from multirobust.threats import MixedThreat, Threat

__all__ = [
    "ConsistencyTraining",
    "ConsistencyViews",
    "check_settings",
    "consistency_loss",
    "draw_adversarial",
    "jensen_shannon",
]

Forward = Literal["separate", "concatenated"]

_GAUSSIAN = GaussianNoise()


@dataclass(frozen=True)
class ConsistencyViews:
    """What the consistency loss compares with the clean batch.

    Args:
        x_adv: Adversarial images (b, c, h, w).
        x_aug: Noise-augmented images (b, c, h, w), in the same threat; None compares two views.
        threat: The threat of the attack drawn for this batch, or the threats of its images.
        terms: Diagnostics for the log.
        chosen: Which attack each image is from, where they differ.
    """

    x_adv: Tensor
    x_aug: Tensor | None
    threat: Threat | MixedThreat
    terms: dict[str, Tensor] = field(default_factory=dict)
    chosen: Chosen | None = None


def jensen_shannon(logits: Sequence[Tensor]) -> Tensor:
    """Return the Jensen-Shannon divergence of several predictions, in nats, mean over the batch.

    Computed in log space: the mixture is a log-sum-exp, so that no probability is clamped and the
    gradient is exact where a class is all but impossible.

    Args:
        logits: Two or more tensors (b, k).

    Returns:
        A scalar in [0, log(len(logits))].
    """
    log_p = torch.stack([F.log_softmax(at_least_float32(view), dim=1) for view in logits])
    log_mixture = torch.logsumexp(log_p, dim=0) - math.log(len(logits))
    return (log_p.exp() * (log_p - log_mixture)).sum(dim=2).mean()


def consistency_loss(
    model: nn.Module,
    batch: Batch,
    views: ConsistencyViews,
    *,
    beta: float,
    forward: Forward | str,
    sampler: Sampler | MixedSampler | None = None,
) -> Loss:
    """Return the total loss of Eq. 7: adversarial cross-entropy plus beta times the divergence.

    Args:
        model: The classifier, in training mode.
        batch: The clean batch.
        views: Its adversarial and augmented images.
        beta: Weight of the divergence.
        forward: "separate" passes clean, augmented and adversarial images one after the other, as
            the published code does: BatchNorm sees three batches. "concatenated" passes them at
            once: BatchNorm sees one batch of three times the size.
        sampler: Is told how the model does on images whose attacks differ.
    """
    augmented = () if views.x_aug is None else (views.x_aug,)
    inputs = (batch.x, *augmented, views.x_adv)
    if forward == "concatenated":
        logits = model(torch.cat(inputs)).chunk(len(inputs))
    else:
        logits = [model(view) for view in inputs]
    if isinstance(sampler, MixedSampler) and views.chosen is not None:
        classification, shares = heard_cross_entropy(sampler, logits[-1], batch, views.chosen)
    else:
        classification, shares = cross_entropy(logits[-1], batch.y), {}
    divergence = jensen_shannon((logits[0], logits[-1], *logits[1:-1]))
    terms = {"cross_entropy": classification.detach(), "consistency": divergence.detach()}
    return Loss(classification + beta * divergence, terms | shares | views.terms)


def draw_adversarial(
    sampler: Sampler | MixedSampler,
    model: nn.Module,
    batch: Batch,
    generator: torch.Generator | None,
) -> ConsistencyViews:
    """Draw an attack (Eq. 5) and return its images (Eq. 1) and its threat; x_aug is still x."""
    if isinstance(sampler, MixedSampler):
        chosen = sampler.craft(model, batch.x, batch.y, place=batch.place, generator=generator)
        threat = MixedThreat(sampler.engine.threats, chosen.allotment)
        return ConsistencyViews(chosen.x_adv, batch.x, threat, chosen=chosen)
    attack = sampler.draw(again=not batch.place.first)
    x_adv, threat = attack(model, batch.x, batch.y, generator=generator), attack.threats[0]
    return ConsistencyViews(x_adv, batch.x, cast("Threat", threat))


def check_settings(name: str, sampler: Sampler | MixedSampler, forward: str) -> None:
    """Raise an InputError unless each attack has one threat and the forward mode is known."""
    if forward not in get_args(Forward):
        raise lookup_error("forward", forward, get_args(Forward))
    if isinstance(sampler, MixedSampler):
        _ = sampler.engine.threats  # raises where an attack has no ball
        return
    for attack in sampler.attacks:
        if len(attack.threats) != 1:
            raise InputError(
                f"{name}: each attack of the sampler must have exactly one threat, for the "
                f"augmented images to be projected onto, got {attack!r}; give its parts to the "
                "sampler one by one."
            )


@final
class ConsistencyTraining(Defense[ConsistencyViews]):
    """SAT with consistency among clean, adversarial and noisy images.

    With Gaussian noise it is row 2 of Table 3.

    Args:
        sampler: Draws the attack of each batch, or of each image; each attack has one threat.
        beta: Weight of the consistency loss.
        forward: See `consistency_loss`.
        noise: Makes the noisy images; None compares clean and adversarial images alone.
    """

    def __init__(
        self,
        sampler: Sampler | MixedSampler,
        *,
        beta: float = 12.0,
        forward: Forward | str = "separate",
        noise: NoiseSource | None = _GAUSSIAN,
    ):
        super().__init__()
        check_settings("ConsistencyTraining", sampler, forward)
        self.sampler = sampler
        self.beta = beta
        self.forward_mode = forward
        self.noise = noise

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> ConsistencyViews:
        """Return adversarial and noisy images. See `Defense.craft`."""
        generator = generator or torch.Generator(batch.x.device).manual_seed(0)
        views = draw_adversarial(self.sampler, model, batch, generator)
        x_aug = None if self.noise is None else self.noise(views.threat, batch.x, generator)
        return replace(views, x_aug=x_aug)

    def loss(self, model: nn.Module, batch: Batch, views: ConsistencyViews) -> Loss:
        """See `Defense.loss`."""
        how: dict[str, Any] = {"beta": self.beta, "forward": self.forward_mode}
        return consistency_loss(model, batch, views, sampler=self.sampler, **how)
