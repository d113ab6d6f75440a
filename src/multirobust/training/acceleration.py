"""What makes a step faster without changing what it computes: passes compiled, folded, replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.attacks import Attack, PassMeter, Sampler
from multirobust.attacks.choosing import MixedSampler
from multirobust.config import TrainingConfig
from multirobust.data import Batch
from multirobust.defenses import Defense, Loss
from multirobust.errors import InputError
from multirobust.models.folding import Folded
from multirobust.ranks import ranks
from multirobust.threats import Threat, Transformation
from multirobust.training.replay import Replays, mapped
from multirobust.training.runtime import Runtime
from multirobust.types import Images, Labels

__all__ = ["Acceleration", "Compiled", "Replayed", "observed", "replay_attacks"]


@final
class Compiled(nn.Module):
    """A model whose passes `torch.compile` has fused; weights, buffers and mode are the model's.

    Where compiling fails, a warning says so once and the model runs as it is. It has no second
    derivative: the look-ahead of `mng_ac` takes the model itself.

    Args:
        model: The model.
        batch_size: Compiling takes long and is for one shape; batches of another size, unless they
            hold a multiple of it, pass the model as it is.
    """

    def __init__(self, model: nn.Module, batch_size: int):
        super().__init__()
        self.model = model
        self.batch_size = batch_size
        self._fast: Callable[[Tensor], Tensor] | None = torch.compile(model.forward, dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, k) of images x (b, c, h, w)."""
        if self._fast is None or len(x) % self.batch_size:
            return self.model.forward(x)
        try:
            return self._fast(x)
        except Exception as error:
            if not _is_of_compiler(error):
                raise
            self._fast = None
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                f"training.compile: torch.compile fails here ({type(error).__name__}: {reason}); "
                "training goes on without it.",
                stacklevel=2,
            )
            return self.model.forward(x)


def _is_of_compiler(error: Exception) -> bool:
    """Tell whether an exception is the compiler's own and not the model's."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


@final
@dataclass(frozen=True)
class Replayed(Attack):
    """An attack that is replayed, see `Replays`.

    Args:
        attack: The attack; it must not wait for the device, and what it does must not depend on
            numbers that it reads back.
        replays: Holds the recordings.
    """

    attack: Attack
    replays: Replays = field(repr=False, compare=False)

    @property
    def threats(self) -> tuple[Threat | Transformation, ...]:
        """The threats of the attack."""
        return self.attack.threats

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`."""

        def work(x: Tensor, y: Tensor, *, generator: torch.Generator | None) -> Tensor:
            return self.attack(model, x, y, generator=generator)

        return self.replays((self.attack, model.training), work, (x, y), generator)


def replay_attacks(defense: nn.Module, replays: Replays) -> None:
    """Let the attacks of a defense be replayed, wherever the defenses of this package keep them.

    A search in which each image has its own attack is replayed as a whole, see `MixedAPGD`.
    """

    def wrapped(attack: Any) -> Any:
        return Replayed(attack, replays) if isinstance(attack, Attack) else attack

    for owner in (defense, getattr(defense, "sampler", None)):
        for name in ("attack", "attacks"):
            held = getattr(owner, name, None)
            if isinstance(held, Attack):
                setattr(owner, name, wrapped(held))
            elif isinstance(held, tuple):
                setattr(owner, name, tuple(wrapped(attack) for attack in held))
    if isinstance(sampler := getattr(defense, "sampler", None), MixedSampler):
        sampler.engine = replace(sampler.engine, run=replays)


@final
class Acceleration:
    """How a training computes its steps: plain, compiled or replayed, attacks also folded.

    Replaying is for one process that takes its batches in one round; with several, or several
    rounds, everything is run.

    Args:
        model: The classifier, in its place.
        defense: Its defense; on a device that replays, its attacks and its `run` are replaced.
        config: Says what is asked for.
        runtime: Gives the device.

    Raises:
        InputError: If several processes are to compile, or passes to be compiled and folded.
    """

    def __init__(
        self, model: nn.Module, defense: Defense[Any], config: TrainingConfig, runtime: Runtime
    ):
        if config.compile and ranks() > 1:
            raise InputError(
                f"training.compile: it must be false with several devices, got {ranks()} of them; "
                "compiled passes would not average their gradients."
            )
        if config.compile and config.fold_batch_norm:
            raise InputError(
                "training.fold_batch_norm: it must be false with training.compile, which fuses the "
                "same operations, got both; drop one."
            )
        self._classifier = model
        self._defense = defense
        compiled = Compiled(model, config.batch_size) if config.compile else None
        self.model: nn.Module = compiled or model
        self._folded = Folded(model) if config.fold_batch_norm else None
        self.meter = PassMeter(model, *filter(None, (compiled, self._folded)))
        alone = ranks() == 1 and config.accumulate == 1
        self.replays = Replays(runtime.device, self.meter, enabled=config.replay and alone)
        if self.replays.enabled:
            replay_attacks(defense, self.replays)
            defense.run = self.replays

    def attacked(self) -> nn.Module:
        """Return what attacks pass: the model, or its folded copy with the weights of now."""
        if self._folded is None:
            return self.model
        self._folded.refresh()
        return self._folded

    def of(self, wrapped: nn.Module) -> nn.Module:
        """Return what the loss is computed with: the compiled model, or the one that is wrapped."""
        return wrapped if self.model is self._classifier else self.model

    def replayed(
        self, compute: Callable[[nn.Module, Batch, Any], Loss], batch: Batch, views: Any
    ) -> Loss:
        """Return the loss of a step and put its gradient into the weights.

        Args:
            compute: Maps model, batch and views to the loss.
            batch: The clean batch.
            views: What the defense made of it.
        """
        parameters = [p for p in self._classifier.parameters() if p.requires_grad]
        inputs: list[Tensor] = []
        mapped((batch, views), lambda tensor: inputs.append(tensor) or tensor)

        def work(
            *tensors: Tensor, generator: torch.Generator | None
        ) -> tuple[Loss, tuple[Tensor | None, ...]]:
            rest = iter(tensors)
            loss = compute(self.model, *mapped((batch, views), lambda _: next(rest)))
            gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
            return mapped(loss, torch.Tensor.detach), gradients

        key = ("loss", observed(self._defense))
        loss, gradients = self.replays(key, work, tuple(inputs))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss


def observed(defense: nn.Module) -> int | None:
    """Return which attack the sampler of a defense hears of, None if it does not learn from it."""
    sampler = getattr(defense, "sampler", None)
    if not isinstance(sampler, Sampler) or type(sampler).observe is Sampler.observe:
        return None
    return sampler.last
