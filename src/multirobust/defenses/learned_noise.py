"""MNG-AC: a generator learns the noise of the augmented images by a meta-gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.attacks import Sampler, attacking
from multirobust.attacks.base import run_directly
from multirobust.attacks.choosing import MixedSampler
from multirobust.config.defense import MetaMode
from multirobust.data import Batch
from multirobust.defenses.base import Defense, Loss, cross_entropy
from multirobust.defenses.consistency import (
    ConsistencyViews,
    Forward,
    check_settings,
    consistency_loss,
    draw_adversarial,
)
from multirobust.defenses.learner import Learner
from multirobust.defenses.restoring import load_optimizer
from multirobust.errors import InputError
from multirobust.metagrad import MetaGradient, call_with, look_ahead_loss, meta_gradient
from multirobust.models import NoiseGenerator
from multirobust.ranks import Part
from multirobust.threats import BallMap, HardProjection, MixedThreat, Threat, mapped_into

__all__ = ["MNGAC"]


@final
class MNGAC(Defense[ConsistencyViews]):
    """Meta noise generator with adversarial consistency (Algorithm 1).

    One step: draw an attack (Eq. 5) and its adversarial images (Eq. 1); augment the batch with
    generated noise, projected onto the same ball (Eq. 6); look one step ahead on the augmented
    images (Eq. 9) and move the generator so that the adversarial loss after that step falls
    (Eq. 10); augment again with fresh noise; minimize Eq. 7 (Eq. 11).

    The look-ahead and the generator's step use the batch's own BatchNorm statistics and change
    neither the classifier nor its running statistics.

    Args:
        sampler: Draws the attack of each batch, or of each image; each attack has one threat.
        noise: The generator g.
        beta: Weight of the consistency loss.
        forward: See `consistency_loss`.
        momentum: Of the generator's SGD. 0 is Eq. 10; the published code has 0.9.
        weight_decay: Of the generator's SGD. 0 is Eq. 10; the published code has 5e-4.
        meta_mode: See `metagrad.meta_gradient`; all modes give the same gradient.
        meta_share: Share of the batch that the generator's step looks at, in (0, 1]: its first
            images, which are as random as any.
        meta_every: Steps of the classifier for one of the generator; 0 never steps it.
        meta_report: Whether to report "meta_loss_before" and "meta_loss_after": the adversarial
            loss after the look-ahead, with the generator before and after its step, on the same
            images and z. It changes no other number.
        rate: Learning rate of the generator over the classifier's.
        ball_map: Makes images in the ball of the noise.

    Raises:
        InputError: If meta_share, meta_every or rate is out of range.
    """

    def __init__(
        self,
        sampler: Sampler | MixedSampler,
        noise: NoiseGenerator,
        *,
        beta: float = 12.0,
        forward: Forward | str = "separate",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        meta_mode: MetaMode = "mixed_vjp",
        meta_share: float = 1.0,
        meta_every: int = 1,
        meta_report: bool = False,
        rate: float = 1.0,
        ball_map: BallMap | None = None,
    ):
        super().__init__()
        check_settings("MNGAC", sampler, forward)
        if not 0 < meta_share <= 1:
            raise InputError(
                f"MNGAC: meta_share must be a share of the batch in (0, 1], got {meta_share!r}."
            )
        if meta_every < 0:
            raise InputError(
                f"MNGAC: meta_every must be a number of steps, got {meta_every!r}; 0 never steps."
            )
        if not 0 <= rate < float("inf"):
            raise InputError(f"MNGAC: rate must be finite and at least 0, got {rate!r}.")
        self.meta_share, self.meta_every = meta_share, meta_every
        self.meta_report, self.rate = meta_report, rate
        self.ball_map = ball_map or HardProjection()
        self.steps = 0
        self.sampler = sampler
        self.noise = noise
        self.beta = beta
        self.forward_mode = forward
        self.meta_mode: MetaMode = meta_mode
        self._learner = Learner(noise, momentum=momentum, weight_decay=weight_decay)

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> ConsistencyViews:
        """Return adversarial images; the augmented ones follow in `adapt`. See `Defense.craft`."""
        return draw_adversarial(self.sampler, model, batch, generator)

    def adapt(
        self,
        model: nn.Module,
        batch: Batch,
        views: ConsistencyViews,
        *,
        lr: float,
        generator: torch.Generator | None = None,
    ) -> ConsistencyViews:
        """Step the generator (Eq. 9 and 10), then augment with fresh noise. See `Defense.adapt`.

        Reports "live_gradient", the share of the generator's outputs whose gradient survives the
        projection.
        """
        generator = generator or torch.Generator(batch.x.device).manual_seed(0)
        threat, terms = views.threat, {}
        if self.meta_every and self.steps % self.meta_every == 0:
            terms = self._step(model, batch, views, lr, generator)
        self.steps += 1
        work = functools.partial(self._augmented, threat)
        x_aug = self._runner(threat)(("noise", threat), work, (batch.x,), generator)
        return replace(views, x_aug=x_aug, terms=terms)

    def _runner(self, threat: Threat | MixedThreat) -> Callable[..., Any]:
        """Return what runs the heavy work: group sizes change, so what is mixed never repeats."""
        return run_directly if isinstance(threat, MixedThreat) else self.run

    def _step(
        self,
        model: nn.Module,
        batch: Batch,
        views: ConsistencyViews,
        lr: float,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Move the generator (Eq. 10), and return what to report of it."""
        threat, place, run = views.threat, batch.place, self._runner(views.threat)
        count = max(round(self.meta_share * len(batch.x)), min(2, len(batch.x)))
        rate = torch.full((), lr, dtype=batch.x.dtype, device=batch.x.device)
        inputs = (batch.x[:count], batch.y[:count], views.x_adv[:count], rate)
        threat = threat.rows(0, count) if isinstance(threat, MixedThreat) else threat
        work = functools.partial(self._gradients, model, threat, place)
        gradients, z, terms = run(("meta", threat), work, inputs, generator)
        self._learner.step(place.summed(gradients), self.rate * lr)
        if not self.meta_report:
            return terms
        work = functools.partial(self._meta_loss, model, threat, place)
        return {**terms, "meta_loss_after": run(("report", threat), work, (*inputs, z))}

    def _gradients(
        self,
        model: nn.Module,
        threat: Threat | MixedThreat,
        place: Part,
        x: Tensor,
        y: Tensor,
        x_adv: Tensor,
        lr: Tensor,
        *,
        generator: torch.Generator | None,
    ) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]:
        """Return the gradient of Eq. 10 by the generator's parameters, its z, what to report."""
        z = self.noise.draw(x, generator)
        noise = self.noise(z, x)
        x_aug = mapped_into(self.ball_map, threat, noise, x)
        meta = self._image_gradient(model, place, y, x_aug, x_adv, lr)
        by_noise = torch.autograd.grad(x_aug, noise, meta.gradients[0], retain_graph=True)
        gradients = torch.autograd.grad(noise, self._learner.parameters, by_noise)
        terms = {"live_gradient": (by_noise[0] != 0).float().mean()}
        if self.meta_report:
            terms["meta_loss_before"] = meta.outer_loss / place.share
        return gradients, z, terms

    def _meta_loss(
        self,
        model: nn.Module,
        threat: Threat | MixedThreat,
        place: Part,
        x: Tensor,
        y: Tensor,
        x_adv: Tensor,
        lr: Tensor,
        z: Tensor,
        *,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return the adversarial loss after one step on the augmented images of z."""
        with torch.no_grad():
            x_aug = mapped_into(self.ball_map, threat, self.noise(z, x), x)
        inner, outer = _losses(model, place, y, x_adv)
        theta = dict(model.named_parameters())
        with attacking(model, "batch"):
            how: dict[str, Any] = {"lr": lr, "total": place.summed}
            loss = look_ahead_loss(inner, outer, theta, (x_aug,), **how)
        return loss / place.share

    def _augmented(
        self, threat: Threat | MixedThreat, x: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        return self.augment(x, threat, generator)

    @torch.no_grad()
    def augment(
        self, x: Tensor, threat: Threat | MixedThreat, generator: torch.Generator | None
    ) -> Tensor:
        """Return proj(x + g(z, x)) for fresh z (Eq. 6), or its other map, without gradient."""
        noise = self.noise(self.noise.draw(x, generator), x)
        return mapped_into(self.ball_map, threat, noise, x)

    def _image_gradient(
        self,
        model: nn.Module,
        place: Part,
        y: Tensor,
        x_aug: Tensor,
        x_adv: Tensor,
        lr: Tensor,
    ) -> MetaGradient:
        """Return the gradient of the adversarial loss after one step on x_aug, by x_aug."""
        theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
        inner, outer = _losses(model, place, y, x_adv)
        with attacking(model, "batch"):
            leaf = x_aug.detach().requires_grad_()
            how: dict[str, Any] = {"lr": lr, "mode": self.meta_mode, "total": place.summed}
            return meta_gradient(inner, outer, theta, (leaf,), **how)

    def loss(self, model: nn.Module, batch: Batch, views: ConsistencyViews) -> Loss:
        """See `Defense.loss`."""
        how: dict[str, Any] = {"beta": self.beta, "forward": self.forward_mode}
        return consistency_loss(model, batch, views, sampler=self.sampler, **how)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the generator's optimizer, and the steps taken."""
        return {"learner": self._learner.optimizer.state_dict(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        load_optimizer(self._learner.optimizer, {**state}["learner"])
        self.steps = int(state.get("steps", 0))


def _losses(
    model: nn.Module, place: Part, y: Tensor, x_adv: Tensor
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return this rank's shares of the inner loss, on augmented images, and of the outer loss."""

    def inner(theta: Mapping[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
        return place.weighted(cross_entropy(call_with(model, theta, phi[0]), y))

    def outer(theta: Mapping[str, Tensor]) -> Tensor:
        return place.weighted(cross_entropy(call_with(model, theta, x_adv), y))

    return inner, outer
