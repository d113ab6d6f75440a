"""RAMP: logit pairing between two extreme norms, and natural training mixed into the update."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.attacks import Attack
from multirobust.attacks.objectives import at_least_float32
from multirobust.data import Batch
from multirobust.defenses.base import Defense, Loss, cross_entropy
from multirobust.defenses.restoring import checked_tensors
from multirobust.errors import CheckpointError, InputError
from multirobust.ranks import Part

__all__ = ["RAMP", "PairedViews", "logit_pairing", "mixed_update"]


@dataclass(frozen=True)
class PairedViews:
    """The adversarial images of two attacks, each (b, c, h, w).

    Args:
        key: Of the attack whose predictions the other is paired with.
        other: Of the other attack.
    """

    key: Tensor
    other: Tensor


def logit_pairing(key: Tensor, other: Tensor, y: Tensor, *, place: Part | None = None) -> Tensor:
    """Return KL(p_key || p_other), in nats, mean over the images that p_key classifies correctly.

    Zero where none is. The gradient goes through both predictions.

    Args:
        key: Logits on the images of the key attack, (b, k).
        other: Logits on those of the other attack, (b, k).
        y: True labels (b,).
        place: Which rows of a batch these are, if it is divided among processes: the images are
            then counted on all of them, and the result is what enters a mean over these rows.
    """
    log_p = F.log_softmax(at_least_float32(key), dim=1)
    log_q = F.log_softmax(at_least_float32(other), dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    right = (key.argmax(1) == y).to(divergence.dtype)
    count = right.sum()
    if place is not None and not place.alone:
        count = place.summed((count,))[0] * (place.rows / place.fellows)
        return (right * divergence).sum() / torch.where(count > 0, count, 1)
    return (right * divergence).sum() / count.clamp(min=1)


def mixed_update(start: Tensor, adversarial: Tensor, natural: Tensor, share: float) -> Tensor:
    """Return where one tensor goes that two trainings have moved from the same start.

    start + share * max(cos, 0) * n + (1 - share) * a, with the moves a of the adversarial and n of
    the natural training and cos the cosine between them. Of a natural move that points against the
    adversarial one, nothing is taken.

    Args:
        start: Before both trainings.
        adversarial: After adversarial training.
        natural: After natural training.
        share: Of the natural training, in [0, 1].
    """
    a, n = adversarial - start, natural - start
    lengths = a.double().norm() * n.double().norm()
    product = (a.double() * n.double()).sum()
    cosine = product / torch.where(lengths > 0, lengths, 1)
    return start + share * cosine.clamp(min=0).to(start.dtype) * n + (1 - share) * a


class _NaturalTraining:
    """SGD on clean images beside the adversarial training, from the same weights every epoch.

    Only the velocities outlive an epoch.
    """

    def __init__(self, *, momentum: float, weight_decay: float):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.start: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.velocities: dict[str, Tensor] = {}

    def step(self, model: nn.Module, batch: Batch, lr: float) -> Tensor:
        """Take one step on the clean batch and return its loss."""
        self._begin(model)
        trained = {n: self.weights[n] for n, p in model.named_parameters() if p.requires_grad}
        leaves = {name: value.detach().requires_grad_() for name, value in trained.items()}
        with torch.enable_grad():
            logits = torch.func.functional_call(model, {**self.weights, **leaves}, (batch.x,))
            loss = batch.place.weighted(cross_entropy(logits, batch.y))
            gradients = torch.autograd.grad(loss, tuple(leaves.values()), allow_unused=True)
        if not batch.place.alone:
            gradients = self._settled(gradients, trained, batch.place)
        with torch.no_grad():
            for name, gradient in zip(leaves, gradients, strict=True):
                if gradient is not None:
                    self._descend(name, gradient, lr)
        return loss.detach()

    def _settled(
        self, gradients: tuple[Tensor | None, ...], trained: Collection[str], place: Part
    ) -> tuple[Tensor | None, ...]:
        """Sum the gradients over the ranks, and average what BatchNorm has noted."""
        noted = {n: v for n, v in self.weights.items() if n not in trained}
        noted = {n: v for n, v in noted.items() if v.is_floating_point()}
        used = tuple(gradient for gradient in gradients if gradient is not None)
        shares = tuple(value * place.share for value in noted.values())
        totals = iter(place.summed((*used, *shares)))
        gradients = tuple(None if g is None else next(totals) for g in gradients)
        self.weights |= dict(zip(noted, totals, strict=True))
        return gradients

    def _begin(self, model: nn.Module) -> None:
        """Copy the model at the first step of an epoch, and follow it to its device."""
        tensors = _tensors(model)
        if not self.start:
            self.start = {name: value.detach().clone() for name, value in tensors.items()}
            self.weights = {name: value.detach().clone() for name, value in tensors.items()}
        for kept in (self.start, self.weights, self.velocities):
            _check(kept, tensors, whole=kept is not self.velocities)
            for name, value in kept.items():
                kept[name] = value.to(tensors[name].device)

    def _descend(self, name: str, gradient: Tensor, lr: float) -> None:
        weight = self.weights[name]
        gradient = gradient.add(weight, alpha=self.weight_decay)
        velocity = self.velocities.setdefault(name, torch.zeros_like(weight))
        velocity.mul_(self.momentum).add_(gradient)
        weight.sub_(velocity, alpha=lr)

    @torch.no_grad()
    def merge(self, model: nn.Module, share: float) -> None:
        """Move the model between its own update and the natural one, and end the epoch."""
        for name, value in _tensors(model).items():
            if name in self.start and value.is_floating_point():
                start, natural = self.start[name], self.weights[name]
                value.copy_(mixed_update(start, value, natural, share))
        self.start, self.weights = {}, {}


def _check(kept: dict[str, Tensor], tensors: dict[str, Tensor], *, whole: bool) -> None:
    """Raise unless what a checkpoint had is of this model."""
    fits = all(
        name in tensors and (value.shape, value.dtype) == (tensors[name].shape, tensors[name].dtype)
        for name, value in kept.items()
    )
    if not fits or (whole and len(kept) != len(tensors)):
        raise CheckpointError(
            "The state of RAMP's natural training, out of a checkpoint, is of another model; "
            "choose another --output, or a checkpoint from a backup."
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@final
class RAMP(Defense[PairedViews]):
    """Cross-entropy on the stronger of two attacks, logit pairing, and gradient projection.

    Loss of a batch: CE on, image by image, the attack of greater loss, plus `pairing` times
    `logit_pairing`. Beside it runs natural training from the same weights; at the end of an epoch
    each tensor of the model, running statistics of BatchNorm among them, moves by `mixed_update`.

    A step costs the two attacks, three passes to the weights for the loss and, with a projection,
    one for natural training; while an epoch runs, three more copies of the weights are kept.

    Departures from the published code: natural training sees the batches of the adversarial one
    instead of a pass of its own in another order; which attack is stronger is decided by the
    training passes, which costs nothing, instead of within the attack.

    Args:
        attacks: The key attack, whose predictions count where they are correct, and the other one;
            published: Auto-PGD with 10 steps in linf and l1.
        pairing: Weight of the pairing; published: 5 from scratch, for fine-tuning 2 in the paper's
            comparison and 1.5 in the scripts.
        projection: Share of natural training in the update; published: 0.5 from scratch. 0 leaves
            natural training out, as published for fine-tuning.
        momentum: Of the SGD of natural training: that of the training.
        weight_decay: The same.

    References: Jiang and Singh, RAMP: Boosting adversarial robustness against multiple lp
    perturbations for universal robustness, NeurIPS 2024.
    """

    def __init__(
        self,
        attacks: tuple[Attack, Attack],
        *,
        pairing: float = 5.0,
        projection: float = 0.5,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ):
        super().__init__()
        if not 0 <= projection <= 1:
            raise InputError(
                f"RAMP: projection must be a share in [0, 1], got {projection!r}; 0 leaves natural "
                "training out."
            )
        self.attacks = attacks
        self.pairing = pairing
        self.projection = projection
        self._natural = _NaturalTraining(momentum=momentum, weight_decay=weight_decay)

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> PairedViews:
        """Return the images of both attacks. See `Defense.craft`."""
        key, other = (a(model, batch.x, batch.y, generator=generator) for a in self.attacks)
        return PairedViews(key, other)

    def adapt(
        self,
        model: nn.Module,
        batch: Batch,
        views: PairedViews,
        *,
        lr: float,
        generator: torch.Generator | None = None,
    ) -> PairedViews:
        """Take the step of natural training; the views stay. See `Defense.adapt`."""
        if self.projection > 0:
            self._natural.step(model, batch, lr)
        return views

    def loss(self, model: nn.Module, batch: Batch, views: PairedViews) -> Loss:
        """See `Defense.loss`."""
        key, other = model(views.key), model(views.other)
        losses = (
            F.cross_entropy(at_least_float32(logits.detach()), batch.y, reduction="none")
            for logits in (key, other)
        )
        stronger = torch.gt(*losses)[:, None, None, None]
        worst = torch.where(stronger, views.key, views.other)
        classification = cross_entropy(model(worst), batch.y)
        divergence = logit_pairing(key, other, batch.y, place=batch.place)
        terms = {"cross_entropy": classification.detach(), "pairing": divergence.detach()}
        return Loss(classification + self.pairing * divergence, terms)

    def after_epoch(self, model: nn.Module) -> None:
        """Mix natural training into what the epoch has learned. See `Defense.after_epoch`."""
        self._natural.merge(model, self.projection)

    def get_extra_state(self) -> dict[str, Any]:
        """Return natural training as it stands: where the epoch began, weights, velocities."""
        natural = self._natural
        return {
            "start": dict(natural.start),
            "weights": dict(natural.weights),
            "velocities": dict(natural.velocities),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        natural = self._natural
        if not isinstance(state, dict):
            raise TypeError("there must be start, weights and velocities")
        natural.start = checked_tensors(state["start"])
        natural.weights = checked_tensors(state["weights"])
        natural.velocities = checked_tensors(state["velocities"])
