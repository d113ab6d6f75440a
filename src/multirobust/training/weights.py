"""The moving average of the weights, and snapshots of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.training.checkpoint import check_counts

__all__ = ["WeightAverage", "snapshot"]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return a copy of everything in the state dict of a model, on its device."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }


@final
class WeightAverage:
    """Exponential moving average of the weights over the steps.

    After step n, counted from 0, average += (1 - d) (weights - average), with the decay warmed up:
    d = min(decay, (1 + n) / (10 + n)). The first weights so lose their share after a few steps, and
    no bias is left to be corrected. The warm-up is that of the published code of Rebuffi et al.,
    which has it from TensorFlow's `ExponentialMovingAverage`.

    Floating buffers, such as the running statistics of BatchNorm, are averaged like weights; whole
    numbers, such as its count of batches, are copied. (The published code takes the statistics of
    the raw weights.)

    Args:
        model: What is averaged; its present weights are the first average.
        decay: In (0, 1); published for adversarial training: 0.995.

    References: Izmailov et al., Averaging weights leads to wider optima and better generalization,
    UAI 2018. Gowal et al., Uncovering the limits of adversarial training against norm-bounded
    adversarial examples, 2020. Rebuffi et al., Data augmentation can improve robustness, NeurIPS
    2021.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self.values = snapshot(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one step; does not wait for the device."""
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in model.state_dict().items():
            average = self.values[name]
            if not isinstance(value, Tensor):
                self.values[name] = value
            elif value.is_floating_point():
                average.lerp_(value, 1 - keep)
            else:
                average.copy_(value)
        self.steps += 1

    @contextlib.contextmanager
    def lent_to(self, model: nn.Module) -> Iterator[None]:
        """Put the average into the model, and its own weights back afterwards, bit for bit."""
        own = snapshot(model)
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If it is the average of another model, or its count is none.
        """
        if state["values"].keys() != self.values.keys():
            raise ValueError("the average in it has other names than the weights")
        check_counts(state, "steps")
        self.steps = state["steps"]
        for name, value in state["values"].items():
            own = self.values[name]
            self.values[name] = own.copy_(value) if isinstance(own, Tensor) else value
