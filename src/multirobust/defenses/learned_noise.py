"""Defenses that learn the noise they train on: MNG-AC by a meta-gradient, ANT by ascent."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.attacks import Sampler, attacking
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
from multirobust.defenses.restoring import load_optimizer
from multirobust.errors import InputError
from multirobust.metagrad import call_with, meta_gradient
from multirobust.models import NoiseGenerator
from multirobust.ranks import Part
from multirobust.threats import L2, Threat

__all__ = ["ANT", "MNGAC"]


class _Learner:
    """Plain SGD for a generator, whose learning rate is the classifier's."""

    def __init__(self, generator: NoiseGenerator, *, momentum: float, weight_decay: float):
        self.parameters = list(generator.parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay
        )

    def step(self, gradients: tuple[Tensor, ...], lr: float) -> None:
        """Move the generator against the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Autocast keeps the half-precision copies of the weights that it made before the step.
        torch.clear_autocast_cache()


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
        sampler: Draws the attack of each batch; each attack has one threat.
        noise: The generator g.
        beta: Weight of the consistency loss.
        forward: See `consistency_loss`.
        momentum: Of the generator's SGD. 0 is Eq. 10; the published code has 0.9.
        weight_decay: Of the generator's SGD. 0 is Eq. 10; the published code has 5e-4.
        meta_mode: See `metagrad.meta_gradient`; all modes give the same gradient.
        meta_share: Share of the batch that the generator's step looks at, in (0, 1]: its first
            images, which are as random as any.
        meta_every: Steps of the classifier for one of the generator.

    Raises:
        InputError: If meta_share or meta_every is out of range.
    """

    def __init__(
        self,
        sampler: Sampler,
        noise: NoiseGenerator,
        *,
        beta: float = 12.0,
        forward: Forward | str = "separate",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        meta_mode: MetaMode = "mixed_vjp",
        meta_share: float = 1.0,
        meta_every: int = 1,
    ):
        super().__init__()
        check_settings("MNGAC", sampler, forward)
        if not 0 < meta_share <= 1:
            raise InputError(
                f"MNGAC: meta_share must be a share of the batch in (0, 1], got {meta_share!r}."
            )
        if meta_every < 1:
            raise InputError(f"MNGAC: meta_every must be at least 1 step, got {meta_every!r}.")
        self.meta_share, self.meta_every = meta_share, meta_every
        self.steps = 0
        self.sampler = sampler
        self.noise = noise
        self.beta = beta
        self.forward_mode = forward
        self.meta_mode: MetaMode = meta_mode
        self._learner = _Learner(noise, momentum=momentum, weight_decay=weight_decay)

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> ConsistencyViews:
        """Return adversarial images; the augmented ones follow in `adapt`. See `Defense.craft`."""
        x_adv, threat = draw_adversarial(self.sampler, model, batch, generator)
        return ConsistencyViews(x_adv, batch.x, threat)

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
        if self.steps % self.meta_every == 0:
            count = max(round(self.meta_share * len(batch.x)), min(2, len(batch.x)))
            rate = torch.full((), lr, dtype=batch.x.dtype, device=batch.x.device)
            inputs = (batch.x[:count], batch.y[:count], views.x_adv[:count], rate)
            work = functools.partial(self._gradients, model, threat, batch.place)
            gradients, terms = self.run(("meta", threat), work, inputs, generator)
            self._learner.step(batch.place.summed(gradients), lr)
        self.steps += 1
        work = functools.partial(self._augmented, threat)
        return replace(
            views, x_aug=self.run(("noise", threat), work, (batch.x,), generator), terms=terms
        )

    def _gradients(
        self,
        model: nn.Module,
        threat: Threat,
        place: Part,
        x: Tensor,
        y: Tensor,
        x_adv: Tensor,
        lr: Tensor,
        *,
        generator: torch.Generator | None,
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Return the gradient of Eq. 10 by the generator's parameters, and what to report of it."""
        noise = self.noise(self.noise.draw(x, generator), x)
        x_aug = threat.project(x + noise, x)
        image_gradient = self._image_gradient(model, place, y, x_aug, x_adv, lr)
        (noise_gradient,) = torch.autograd.grad(x_aug, noise, image_gradient, retain_graph=True)
        gradients = torch.autograd.grad(noise, self._learner.parameters, noise_gradient)
        return gradients, {"live_gradient": (noise_gradient != 0).float().mean()}

    def _augmented(self, threat: Threat, x: Tensor, *, generator: torch.Generator | None) -> Tensor:
        return self.augment(x, threat, generator)

    @torch.no_grad()
    def augment(self, x: Tensor, threat: Threat, generator: torch.Generator | None) -> Tensor:
        """Return proj(x + g(z, x)) for fresh z (Eq. 6), without gradient."""
        return threat.project(x + self.noise(self.noise.draw(x, generator), x), x)

    def _image_gradient(
        self,
        model: nn.Module,
        place: Part,
        y: Tensor,
        x_aug: Tensor,
        x_adv: Tensor,
        lr: Tensor,
    ) -> Tensor:
        """Return the gradient of the adversarial loss after one step on x_aug, by x_aug."""
        theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}

        def inner(theta: Mapping[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
            return place.weighted(cross_entropy(call_with(model, theta, phi[0]), y))

        def outer(theta: Mapping[str, Tensor]) -> Tensor:
            return place.weighted(cross_entropy(call_with(model, theta, x_adv), y))

        with attacking(model, "batch"):
            leaf = x_aug.detach().requires_grad_()
            how: dict[str, Any] = {"lr": lr, "mode": self.meta_mode, "total": place.summed}
            meta = meta_gradient(inner, outer, theta, (leaf,), **how)
        return meta.gradients[0]

    def loss(self, model: nn.Module, batch: Batch, views: ConsistencyViews) -> Loss:
        """See `Defense.loss`."""
        return consistency_loss(model, batch, views, beta=self.beta, forward=self.forward_mode)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the generator's optimizer, and the steps taken."""
        return {"learner": self._learner.optimizer.state_dict(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        load_optimizer(self._learner.optimizer, {**state}["learner"])
        self.steps = int(state.get("steps", 0))


@final
class ANT(Defense[Tensor]):
    """Adversarial noise training: a generator learns the noise of greatest loss.

    The noise is scaled to the sphere of the l2 radius and kept within the pixel box; the generator
    climbs the classifier's loss with the classifier's learning rate; the classifier trains on a
    batch of which one part stays clean. The replay of former generators, which the source adds for
    long trainings, is left out.

    Args:
        noise: The generator.
        threat: l2 ball; its radius is the length of the noise.
        clean_share: Share of the batch that stays clean; published: 0.5.

    References: Rusak et al., A simple way to make neural networks robust against diverse image
    corruptions, ECCV 2020.
    """

    def __init__(self, noise: NoiseGenerator, threat: L2, *, clean_share: float = 0.5):
        super().__init__()
        self.noise = noise
        self.threat = threat
        self.clean_share = clean_share
        self._learner = _Learner(noise, momentum=0.0, weight_decay=0.0)

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noisy images, with a graph that leads to the generator. See `Defense.craft`."""
        noise = self.noise(self.noise.draw(batch.x, generator), batch.x)
        return self.threat.project(batch.x + self._scaled(noise), batch.x)

    def _scaled(self, noise: Tensor) -> Tensor:
        length = noise.flatten(1).norm(dim=1)
        factor = self.threat.radius / torch.where(length > 0, length, 1)
        return noise * factor[:, None, None, None]

    def adapt(
        self,
        model: nn.Module,
        batch: Batch,
        views: Tensor,
        *,
        lr: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Step the generator uphill; the views stay. See `Defense.adapt`."""
        with attacking(model):
            loss = batch.place.weighted(cross_entropy(model(views), batch.y))
            gradients = torch.autograd.grad(loss, self._learner.parameters)
            gradients = batch.place.summed(gradients)
        self._learner.step(tuple(-gradient for gradient in gradients), lr)
        return views.detach()

    def loss(self, model: nn.Module, batch: Batch, views: Tensor) -> Loss:
        """See `Defense.loss`."""
        place = batch.place
        clean = min(max(round(self.clean_share * place.total) - place.start, 0), len(batch.x))
        mixed = torch.cat((batch.x[:clean], views.detach()[clean:]))
        total = cross_entropy(model(mixed), batch.y)
        return Loss(total, {"cross_entropy": total.detach()})

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the generator's optimizer."""
        return {"learner": self._learner.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        load_optimizer(self._learner.optimizer, {**state}["learner"])
