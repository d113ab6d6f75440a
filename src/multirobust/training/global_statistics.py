"""BatchNorm over the images of all ranks: on any device, and differentiable twice."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from multirobust.attacks.objectives import at_least_float32
from multirobust.ranks import rank, ranks, summed

__all__ = ["GlobalStatistics"]


@final
class GlobalStatistics:
    """Lets the BatchNorm layers of a model use the images of all ranks, while it is entered.

    A layer in training mode normalizes by the mean and the variance over all ranks; one in
    evaluation mode is left as it is. `torch.nn.SyncBatchNorm` needs a GPU and has no second
    derivative, which a meta-gradient takes. A pass costs one message a layer, of two numbers a
    channel from each rank, and as much again backward.

    All ranks must pass the same layers in the same order. While `active` is false, each rank has
    the whole batch and normalizes by its own images.

    Args:
        model: Its parameters and buffers keep their names.
        over: "global"; with "device" every layer is left as it is.
    """

    def __init__(self, model: nn.Module, over: Literal["device", "global"]):
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.layers = layers if over == "global" else []
        self.active = True

    def __enter__(self) -> GlobalStatistics:
        for layer in self.layers:
            layer.forward = functools.partial(self._forward, layer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer in self.layers:
            del layer.forward

    def _forward(self, layer: _BatchNorm, x: Tensor) -> Tensor:
        own = layer.training or layer.running_mean is None
        if not (self.active and own and ranks() > 1):
            return type(layer).forward(layer, x)
        values = at_least_float32(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean, variance, count = _moments(values, axes)
        if layer.training and layer.track_running_stats and layer.running_mean is not None:
            _note(layer, mean.detach(), variance.detach() * count / (count - 1))
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        scale = torch.rsqrt(variance + layer.eps)
        y = (values - mean.view(shape)) * scale.view(shape)
        if layer.affine:
            y = y * layer.weight.view(shape) + layer.bias.view(shape)
        return y.to(x.dtype)


def _moments(values: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance of each channel over all ranks, and the number of values.

    Each rank sends its own moments, which are then put together: no square of a mean is
    subtracted from a mean of squares.
    """
    channels = values.shape[1]
    variance, mean = torch.var_mean(values, dim=axes, correction=0)
    size = values.new_full((1,), values.numel() / channels)
    row = torch.cat((mean, variance, size))
    (table,) = summed((F.pad(row[None], (0, 0, rank(), ranks() - 1 - rank())),))
    means, variances, sizes = table.split([channels, channels, 1], dim=1)
    sizes = sizes.detach()
    count = sizes.sum()
    weights = sizes / count
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean) ** 2)).sum(0)
    return mean, variance, count


@torch.no_grad()
def _note(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as `torch.nn.BatchNorm2d` does."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum
    if momentum is None:
        momentum = 1 / layer.num_batches_tracked.item()
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), momentum)
