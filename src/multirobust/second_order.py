"""Convolutions and BatchNorm whose second derivative costs what it must, for the look-ahead step.

The gradient of a loss by weights theta is differentiated once more, by what the images depend on
and never by theta. PyTorch's rules do not know that. Its convolution forms the gradient of theta in
the second pass too, and BatchNorm's second derivative is some twenty operations on whole tensors.
Here a convolution takes four of its size there, two for the gradient of the weights and two for
that of the input, and BatchNorm its own first derivative and six sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["FixedWeights", "call_with"]

Sizes: TypeAlias = tuple[list[int], list[int], list[int], bool, list[int], int]

aten = torch.ops.aten
INPUT = [True, False, False]


@final
class FixedWeights(TorchFunctionMode):
    """While entered, convolutions and BatchNorm with these weights have lean second derivatives.

    What is computed inside may be differentiated by the weights with `create_graph=True`, and the
    result once more, without, by anything but the weights. The values are those of PyTorch's own
    rules up to rounding. It acts on 2-d convolutions and on BatchNorm in training mode, on a CPU
    and without autocast; all else is left as it is.

    Args:
        weights: Leaves that require a gradient.
        values: Whether the first gradient is wanted for itself. If not, that by the weight of a
            convolution is zeros which take no memory, and only what it leads to is right.
    """

    def __init__(self, weights: Iterable[Tensor], *, values: bool = True):
        super().__init__()
        self._weights = {id(weight): weight for weight in weights}
        self.values = values

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute a function of torch, with rules of its own where there are some."""
        lean, kwargs = _LEAN.get(func), kwargs or {}
        result = lean(self, *args, **kwargs) if lean else None
        return func(*args, **kwargs) if result is None else result

    def holds(self, *tensors: Tensor | None) -> bool:
        """Tell whether all of these are among the weights."""
        return all(id(tensor) in self._weights for tensor in tensors)


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the rules are measured for such tensors."""
    same = x.device.type == "cpu" and x.dtype == weight.dtype and x.ndim == 4
    return same and not torch.is_autocast_enabled("cpu")


def _convolution(
    fixed: FixedWeights,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return what `torch.conv2d` does, or None if that is to do it."""
    if isinstance(padding, str) or not fixed.holds(weight) or not _plain(input, weight):
        return None
    sizes = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
    result = _Convolution.apply(input, weight, sizes, fixed.values)
    return result if bias is None else result + bias[:, None, None]


def _pair(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: Sizes, values: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.values = sizes, values
        return aten.convolution(x, weight, None, *sizes)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = grad_outputs, ctx.saved_tensors
        if torch.is_grad_enabled():  # the first time, to be differentiated again
            mask = [ctx.needs_input_grad[0], ctx.values, False]
            return *_ConvolutionGradient.apply(gradient, x, weight, ctx.sizes, mask), None, None
        by_x = aten.convolution_backward(gradient, x, weight, None, *ctx.sizes, INPUT)[0]
        return by_x, None, None, None


class _ConvolutionGradient(Function):
    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, sizes: Sizes, mask: list[bool]
    ) -> tuple[Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, x, weight)
        ctx.sizes = sizes
        by_x = by_weight = None
        if any(mask):
            found = aten.convolution_backward(gradient, x, weight, None, *sizes, mask)
            by_x, by_weight = found[:2]
        return by_x, weight.new_zeros(()).expand_as(weight) if by_weight is None else by_weight

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor | None
    ) -> tuple[Any, ...]:
        along_x, along_weight = grad_outputs
        gradient, x, weight = ctx.saved_tensors
        by_gradient = by_x = None
        if along_x is not None:
            by_gradient = aten.convolution(along_x, weight, None, *ctx.sizes)
        if along_weight is not None:
            other = aten.convolution(x, along_weight, None, *ctx.sizes)
            by_gradient = other if by_gradient is None else by_gradient.add_(other)
            if ctx.needs_input_grad[1]:
                arguments = gradient, x, along_weight, None, *ctx.sizes, INPUT
                by_x = aten.convolution_backward(*arguments)[0]
        return by_gradient, by_x, None, None, None


def _batch_norm(
    fixed: FixedWeights,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Return what `torch.nn.functional.batch_norm` does, or None if that is to do it."""
    if not training or weight is None or not fixed.holds(weight, bias) or not _plain(input, weight):
        return None
    if input.numel() <= input.shape[1]:  # one value a channel: PyTorch says what is wrong
        return None
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


class _BatchNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *settings: Any) -> Tensor:
        *running, momentum, eps = settings
        y, mean, scale = aten.native_batch_norm(x, weight, bias, *running, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight, mean, scale) = grad_outputs, ctx.saved_tensors
        if torch.is_grad_enabled():  # the first time, to be differentiated again
            gradients = _BatchNormGradient.apply(gradient, x, weight, mean, scale, ctx.eps)
            return *gradients, None, None, None, None
        by_x = _gradient_of_norm(gradient, x, weight, mean, scale, ctx.eps, INPUT)[0]
        return by_x, *[None] * 6


def _gradient_of_norm(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    eps: float,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return aten.native_batch_norm_backward(
        gradient, x, weight, None, None, mean, scale, True, eps, mask
    )


class _BatchNormGradient(Function):
    """The gradient of BatchNorm, and what leads back from it to the images.

    With n values a channel, h = (x - mean) scale, w the weight and m the mean of a channel, the
    gradient by x is w scale (g - m(g) - h m(g h)), by the weight n m(g h), and by the bias n m(g).
    It is linear and symmetric in g. In x, everything is a combination of g, of the direction c,
    and of h, whose factors are numbers of a channel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        scale: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        gradients = _gradient_of_norm(gradient, x, weight, mean, scale, eps, [True] * 3)
        ctx.save_for_backward(gradient, x, weight, mean, scale, *gradients[1:])
        ctx.eps = eps
        return gradients

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor | None
    ) -> tuple[Any, ...]:
        along, along_weight, along_bias = grad_outputs
        gradient, x, weight, mean, scale, sum_gh, sum_g = ctx.saved_tensors
        n = x.numel() / x.shape[1]
        zero = torch.zeros_like(weight)
        along_weight = zero if along_weight is None else along_weight
        along_bias = zero if along_bias is None else along_bias
        if along is None:
            by_gradient, sum_ch, sum_c, sum_cg = torch.zeros_like(x), zero, zero, zero
        else:
            arguments = along, x, weight, mean, scale, ctx.eps, [True] * 3
            by_gradient, sum_ch, sum_c = _gradient_of_norm(*arguments)
            sum_cg = (along * gradient).sum((0, 2, 3))
        _add_affine(by_gradient, x, mean, along_weight * scale, along_bias)
        if not ctx.needs_input_grad[1]:
            return by_gradient, *[None] * 5
        # u = of_c c + of_g g is the direction by h; by_x is the gradient of h along u, and that of
        # the scale, w n times bracket, along h.
        of_c, of_g = -weight * scale * sum_gh / n, along_weight - weight * scale * sum_ch / n
        bracket = weight * (sum_cg - sum_c * sum_g / n - sum_ch * sum_gh / n)
        of_h = (of_c * sum_ch + of_g * sum_gh) / n + bracket * scale / n
        constant = -(of_c * sum_c + of_g * sum_g) / n
        by_x = gradient * _column(of_g * scale)
        if along is not None:
            by_x.addcmul_(along, _column(of_c * scale))
        _add_affine(by_x, x, mean, -of_h * scale * scale, constant * scale)
        return by_gradient, by_x, *[None] * 4


def _add_affine(to: Tensor, x: Tensor, mean: Tensor, factor: Tensor, constant: Tensor) -> None:
    """Add factor (x - mean) + constant, whose numbers are those of a channel."""
    to.addcmul_(x, _column(factor)).add_(_column(constant - factor * mean))


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]


_LEAN: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    torch.conv2d: _convolution,
    F.batch_norm: _batch_norm,
}


def call_with(model: nn.Module, theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return model(x) as if the parameters of the model were theta.

    Its buffers are replaced by clones for the call, so that BatchNorm in training mode uses the
    statistics of x without a change to the running ones. Works under reverse mode, forward mode
    and the transforms of `torch.func`.

    Args:
        model: Any module.
        theta: Parameters by name, as in `dict(model.named_parameters())`; one that is left out
            keeps the value that it has in the model.
        x: What the model is called with.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return torch.func.functional_call(model, {**buffers, **theta}, (x,))
