"""Defenses that learn the noise they train on: MNG-AC by a meta-gradient, ANT by ascent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from multirobust.attacks import Sampler, attacking
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
from multirobust.metagrad import call_with, meta_gradient
from multirobust.models import NoiseGenerator
from multirobust.threats import L2, Threat

__all__ = ["ANT", "MNGAC"]

MetaMode = Literal["mixed_vjp", "unrolled", "forward_over_reverse"]


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
    ):
        super().__init__()
        check_settings("MNGAC", sampler, forward)
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
        noise = self.noise(self.noise.draw(batch.x, generator), batch.x)
        x_aug = views.threat.project(batch.x + noise, batch.x)
        image_gradient = self._image_gradient(model, batch, x_aug, views.x_adv, lr)
        (noise_gradient,) = torch.autograd.grad(x_aug, noise, image_gradient, retain_graph=True)
        gradients = torch.autograd.grad(noise, self._learner.parameters, noise_gradient)
        self._learner.step(gradients, lr)
        live = (noise_gradient != 0).float().mean()
        fresh = self.augment(batch.x, views.threat, generator)
        return replace(views, x_aug=fresh, terms={"live_gradient": live})

    @torch.no_grad()
    def augment(self, x: Tensor, threat: Threat, generator: torch.Generator | None) -> Tensor:
        """Return proj(x + g(z, x)) for fresh z (Eq. 6), without gradient."""
        return threat.project(x + self.noise(self.noise.draw(x, generator), x), x)

    def _image_gradient(
        self, model: nn.Module, batch: Batch, x_aug: Tensor, x_adv: Tensor, lr: float
    ) -> Tensor:
        """Return the gradient of the adversarial loss after one step on x_aug, by x_aug."""
        theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}

        def inner(theta: Mapping[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
            return cross_entropy(call_with(model, theta, phi[0]), batch.y)

        def outer(theta: Mapping[str, Tensor]) -> Tensor:
            return cross_entropy(call_with(model, theta, x_adv), batch.y)

        with attacking(model, "batch"):
            leaf = x_aug.detach().requires_grad_()
            meta = meta_gradient(inner, outer, theta, (leaf,), lr=lr, mode=self.meta_mode)
        return meta.gradients[0]

    def loss(self, model: nn.Module, batch: Batch, views: ConsistencyViews) -> Loss:
        """See `Defense.loss`."""
        return consistency_loss(model, batch, views, beta=self.beta, forward=self.forward_mode)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the generator's optimizer."""
        return {"learner": self._learner.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        load_optimizer(self._learner.optimizer, {**state}["learner"])


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
            loss = cross_entropy(model(views), batch.y)
            gradients = torch.autograd.grad(loss, self._learner.parameters)
        self._learner.step(tuple(-gradient for gradient in gradients), lr)
        return views.detach()

    def loss(self, model: nn.Module, batch: Batch, views: Tensor) -> Loss:
        """See `Defense.loss`."""
        clean = round(self.clean_share * len(batch.x))
        mixed = torch.cat((batch.x[:clean], views.detach()[clean:]))
        total = cross_entropy(model(mixed), batch.y)
        return Loss(total, {"cross_entropy": total.detach()})

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the generator's optimizer."""
        return {"learner": self._learner.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        load_optimizer(self._learner.optimizer, {**state}["learner"])
