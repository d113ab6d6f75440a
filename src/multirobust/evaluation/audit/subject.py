"""The model under audit, with the images it is asked about."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn

from multirobust.attacks import Attack, IterativeAttack, attacking, input_gradient, run_rows
from multirobust.attacks.objectives import LogitObjective, at_least_float32
from multirobust.errors import InputError
from multirobust.types import Images, Labels, Logits

__all__ = ["Subject", "as_it_was"]


@contextlib.contextmanager
def as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Lend a model, and give it and the global random generators back as they were.

    A randomized layer draws from a global generator; without this the audit would change what comes
    after it.
    """
    devices = [device] if device.type not in ("cpu", "meta") else []
    kind = device.type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=kind), attacking(model):
        yield


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A model and labeled images, asked in batches.

    Args:
        model: Maps images in [0, 1] to logits; lent by `as_it_was`.
        x: Images (n, c, h, w) in [0, 1], float32.
        y: Labels (n,).
        batch_size: Images a pass.
    """

    model: nn.Module
    x: Images
    y: Labels
    batch_size: int

    def __len__(self) -> int:
        return len(self.x)

    @torch.no_grad()
    def ask(self, x: Tensor) -> Logits:
        """Return the logits (n, k) of images as the model gives them.

        Raises:
            InputError: If they are not of this shape.
        """
        answers = [self.model(part) for part in x.split(self.batch_size)]
        for answer in answers:
            if not isinstance(answer, Tensor) or answer.ndim != 2:
                got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
                raise InputError(
                    f"model must return logits of shape (b, classes), got {got}; wrap it in a "
                    "module that returns only these."
                )
        return torch.cat(answers)

    @cached_property
    def answers(self) -> Logits:
        """Logits of the images as the model gives them."""
        return self.ask(self.x)

    @cached_property
    def logits(self) -> Logits:
        """Logits of the images, at least in float32."""
        return at_least_float32(self.answers)

    @cached_property
    def right(self) -> Tensor:
        """Which images the model gets right, (n,) bool; one with a NaN logit is not."""
        return (self.logits.argmax(1) == self.y) & ~self.logits.isnan().any(1)

    def of(self, rows: Tensor) -> Subject:
        """Return the same model with some of the images, in their order. A mask, (n,) bool."""
        return replace(self, x=self.x[rows], y=self.y[rows])

    def gradient(self, objective: LogitObjective) -> Tensor:
        """Return the gradient of a loss by the images, (n, c, h, w).

        Raises:
            InputError: If no gradient leads back to the images.
        """
        parts = []
        for x, y in self._batches(self.x):
            gradient, _ = input_gradient(self.model, x, _loss(objective, y))
            parts.append(gradient)
        return torch.cat(parts)

    def loss(self, objective: LogitObjective, x: Images) -> tuple[Tensor, Tensor]:
        """Return the loss of images with these labels, (n,), and which are right, (n,) bool."""
        logits = at_least_float32(self.ask(x))
        right = (logits.argmax(1) == self.y) & ~logits.isnan().any(1)
        return _loss(objective, self.y)(logits), right

    def attack(self, attack: Attack, seed: int = 0) -> Images:
        """Return what an attack makes of the images."""
        generator = torch.Generator(self.x.device).manual_seed(seed)
        if isinstance(attack, IterativeAttack):
            return run_rows(
                attack,
                self.model,
                self.x,
                self.y,
                batch_size=self.batch_size,
                generator=generator,
            )
        batches = self._batches(self.x)
        return torch.cat([attack(self.model, x, y, generator=generator) for x, y in batches])

    def _batches(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(x.split(self.batch_size), self.y.split(self.batch_size), strict=True)


def _loss(objective: LogitObjective, y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: objective.of(logits, y, y)
