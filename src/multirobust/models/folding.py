"""A classifier without its BatchNorm layers, for passes that take running statistics."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, TypeGuard, final

import torch
from torch import Tensor, nn

from multirobust.types import Images

__all__ = ["Folded"]


@final
class _ScaleShift(nn.Module):
    """scale * x + shift, channel by channel: a BatchNorm in evaluation mode, in one operation.

    Args:
        channels: Number of channels of x.
        like: Gives dtype and device.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int, like: Tensor):
        super().__init__()
        for name in ("scale", "shift"):
            self.register_buffer(name, like.new_empty(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c, h, w)."""
        return torch.addcmul(self.shift, self.scale, x)


@final
class Folded(nn.Module):
    """A model in evaluation mode as a frozen copy with folded BatchNorm: equal up to rounding.

    With running statistics a BatchNorm multiplies and adds. Where it directly follows a
    convolution, in an `nn.Sequential` however nested, its numbers go into the convolution's
    weights and bias, and it is gone. Elsewhere, as before the convolution of a pre-activation
    block, it becomes one multiply-add. Only `nn.BatchNorm2d` with running statistics is changed,
    and only an `nn.Conv2d` that is in one place of the model, shares no weights and has no hooks
    takes it in.

    Args:
        model: The classifier; it stays as it is. The copy follows it at every `refresh`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self._source = (model,)  # in a tuple, so that it is no part of this module
        self._folds = dict(_directly_after_convolutions(model))
        self.network = copy.deepcopy(model).requires_grad_(False)
        self._scales = [name for name, part in _norms(model) if name not in self._folds]
        for name, convolution in self._folds.items():
            _put(self.network, name, nn.Identity())
            taker = _at(self.network, convolution)
            taker.bias = nn.Parameter(taker.weight.new_empty(len(taker.weight)), False)
        for name in self._scales:
            layer = _at(model, name)
            _put(self.network, name, _ScaleShift(layer.num_features, layer.running_var))
        self.eval()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights and running statistics that the model has now."""
        (model,) = self._source
        there, changed = model.state_dict(), {*self._folds.values(), *self._scales}
        for name, tensor in self.network.state_dict().items():
            if name.rpartition(".")[0] not in changed:
                tensor.copy_(there[name])
        for name, convolution in self._folds.items():
            scale, shift = _numbers(_at(model, name))
            source, taker = _at(model, convolution), _at(self.network, convolution)
            taker.weight.copy_(source.weight * scale.view(-1, 1, 1, 1))
            taker.bias.copy_(shift if source.bias is None else source.bias * scale + shift)
        for name in self._scales:
            scale, shift = _numbers(_at(model, name))
            taker = _at(self.network, name)
            taker.scale.copy_(scale.view(1, -1, 1, 1))
            taker.shift.copy_(shift.view(1, -1, 1, 1))

    def forward(self, x: Images) -> Tensor:
        """Return the logits (b, k) of images x (b, c, h, w)."""
        return self.network(x)


def _at(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def _norms(model: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    """Return the layers that can be folded or become a multiply-add, with their names."""
    return [
        (name, part)
        for name, part in model.named_modules()
        if name and type(part) is nn.BatchNorm2d and part.running_var is not None
        if not _hooked(part)
    ]


def _directly_after_convolutions(model: nn.Module) -> list[tuple[str, str]]:
    """Return the names of such layers that a convolution directly precedes, each with its name."""
    names = {id(part): name for name, part in model.named_modules()}
    places = [id(part) for _, part in model.named_modules(remove_duplicate=False)]
    tensors = [id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False)]
    norms, found = {id(part) for _, part in _norms(model)}, {}
    for sequence in model.modules():
        if not _is_plain(sequence):
            continue
        for first, second in pairwise(_layers(sequence)):
            alone = places.count(id(first)) == places.count(id(second)) == 1
            takes = type(first) is nn.Conv2d and alone and not _hooked(first)
            own = all(tensors.count(id(tensor)) == 1 for tensor in first.parameters())
            if takes and own and id(second) in norms:
                found[names[id(second)]] = names[id(first)]
    return list(found.items())


def _is_plain(part: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a module does what it holds one after the other, and nothing else."""
    return type(part) is nn.Sequential


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _layers(sequence: nn.Sequential) -> list[nn.Module]:
    """Return what a sequence does one after the other, through sequences in it."""
    parts: list[nn.Module] = []
    for part in sequence:
        parts += _layers(part) if _is_plain(part) and not _hooked(part) else [part]
    return parts


def _numbers(layer: Any) -> tuple[Tensor, Tensor]:
    """Return what a BatchNorm in evaluation mode multiplies by and adds, each (c,)."""
    scale = (layer.running_var + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight
    shift = -layer.running_mean * scale
    return scale, shift if layer.bias is None else shift + layer.bias


def _put(model: nn.Module, name: str, part: nn.Module) -> None:
    """Put a module in the place of another."""
    outer, _, last = name.rpartition(".")
    setattr(model.get_submodule(outer), last, part)
