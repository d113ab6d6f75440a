"""The optimizer of a noise generator."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from multirobust.models import NoiseGenerator

__all__ = ["Learner"]


@final
class Learner:
    """SGD for a generator, which gets its learning rate with each step.

    Args:
        generator: Its parameters are moved in place.
        momentum: Of SGD; 0 is plain gradient descent.
        weight_decay: Of SGD.
    """

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
