"""The gradient through one look-ahead step of gradient descent, computed four exact ways.

    theta_hat(phi) = theta - lr * grad_theta inner(theta, phi)          (Eq. 9)
    meta-gradient  = grad_phi outer(theta_hat(phi))                     (the gradient of Eq. 10)
                   = -lr * d/dphi <grad_theta inner(theta, phi), v>,   v = grad outer(theta_hat)

phi enters only through the inner gradient, so the whole meta-gradient is second order: dropping
second derivatives, as first-order meta-learning does, leaves exactly zero.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from multirobust.errors import InputError, lookup_error
from multirobust.second_order import FixedWeights, call_with

__all__ = ["MetaGradient", "Mode", "call_with", "look_ahead_loss", "meta_gradient"]

Parameters: TypeAlias = dict[str, Tensor]
Inner: TypeAlias = Callable[[Parameters, tuple[Tensor, ...]], Tensor]
Outer: TypeAlias = Callable[[Parameters], Tensor]
Total: TypeAlias = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
Mode: TypeAlias = Literal["mixed_vjp", "recomputed", "unrolled", "forward_over_reverse"]


class MetaGradient(NamedTuple):
    """What `meta_gradient` returns, all of it detached.

    Args:
        gradients: One tensor for each tensor of phi, of its shape; zeros where phi is not used.
        outer_loss: outer(theta_hat), a scalar.
        inner_loss: inner(theta, phi), a scalar.
    """

    gradients: tuple[Tensor, ...]
    outer_loss: Tensor
    inner_loss: Tensor


def meta_gradient(
    inner: Inner,
    outer: Outer,
    theta: Mapping[str, Tensor],
    phi: tuple[Tensor, ...],
    *,
    lr: float | Tensor,
    mode: Mode | str = "mixed_vjp",
    total: Total = tuple,
) -> MetaGradient:
    """Return d/dphi of outer(theta - lr * grad_theta inner(theta, phi)).

    Neither `.grad` nor `requires_grad` of any tensor of the caller changes. The modes agree up to
    rounding; they differ in cost:

    - "mixed_vjp": the inner gradient with its graph, the outer gradient v at theta_hat, then one
      backward pass through the inner gradient. The two losses share no graph.
    - "recomputed": the same without keeping the inner graph while the outer gradient is formed:
      less memory, more time. It evaluates `inner` twice, like "forward_over_reverse".
    - "unrolled": one graph from phi through theta_hat to the outer loss.
    - "forward_over_reverse": the tangent, in direction v, of theta -> grad_phi inner(theta, phi).
      It evaluates `inner` twice, so `inner` must return the same value when called again: draw its
      noise outside. Every operation on the way needs a forward-mode rule.

    Args:
        inner: Maps parameters and phi to a scalar. It must use the parameters that it is given,
            for example through `call_with`.
        outer: Maps parameters to a scalar.
        theta: The parameters, by name; their values alone are read.
        phi: Tensors that require a gradient, leaves or not.
        lr: Step size of the look-ahead step, at least 0; a float or a 0-dimensional tensor.
        mode: How to compute it.
        total: Where inner and outer are a share of a sum over several processes: maps gradients by
            theta to their sums, differentiably (`ranks.summed`). The gradients by phi are then
            those of the whole outer loss by this process's phi; the two losses stay shares.

    Raises:
        InputError: If the mode is unknown, lr is negative, not finite or not a scalar, theta or phi
            is empty, a tensor of phi does not require a gradient, or a loss is not a scalar.

    References: Madaan, Shin and Hwang, Learning to generate noise for multi-attack robustness,
    ICML 2021, Eq. 9 and 10.
    """
    if mode not in _MODES:
        raise lookup_error("mode", mode, _MODES)
    _check(theta, phi, lr)
    with torch.enable_grad():
        return _MODES[mode](inner, outer, _leaves(theta), tuple(phi), lr, total)


def look_ahead_loss(
    inner: Inner,
    outer: Outer,
    theta: Mapping[str, Tensor],
    phi: tuple[Tensor, ...],
    *,
    lr: float | Tensor,
    total: Total = tuple,
) -> Tensor:
    """Return outer(theta - lr * grad_theta inner(theta, phi)), detached, and no derivative of it.

    Args:
        inner: See `meta_gradient`, as for all that follow.
        outer: Maps parameters to a scalar.
        theta: The parameters, by name.
        phi: What inner is called with; it need not require a gradient.
        lr: Step size of the look-ahead step.
        total: Sums gradients over several processes.
    """
    leaves = _leaves(theta)
    with torch.enable_grad():
        gradient = _gradients(_scalar(inner(leaves, phi), "inner"), tuple(leaves.values()))
    with torch.no_grad():
        return _scalar(outer(_step(leaves, total(gradient), lr)), "outer")


def _unrolled(
    inner: Inner,
    outer: Outer,
    theta: Parameters,
    phi: tuple[Tensor, ...],
    lr: float | Tensor,
    total: Total,
) -> MetaGradient:
    inner_loss = _scalar(inner(theta, phi), "inner")
    gradient = _gradients(inner_loss, tuple(theta.values()), create_graph=True)
    outer_loss = _scalar(outer(_step(theta, total(gradient), lr)), "outer")
    gradients = _gradients(outer_loss, phi)
    return MetaGradient(gradients, outer_loss.detach(), inner_loss.detach())


def _mixed_vjp(
    inner: Inner,
    outer: Outer,
    theta: Parameters,
    phi: tuple[Tensor, ...],
    lr: float | Tensor,
    total: Total,
) -> MetaGradient:
    with FixedWeights(theta.values()):
        inner_loss = _scalar(inner(theta, phi), "inner")
    gradient = _gradients(inner_loss, tuple(theta.values()), create_graph=True)
    outer_loss, direction = _look_ahead(outer, theta, gradient, lr, total)
    gradients = _mixed(gradient, direction, phi, lr)
    return MetaGradient(gradients, outer_loss, inner_loss.detach())


def _recomputed(
    inner: Inner,
    outer: Outer,
    theta: Parameters,
    phi: tuple[Tensor, ...],
    lr: float | Tensor,
    total: Total,
) -> MetaGradient:
    inner_loss = _scalar(inner(theta, phi), "inner")
    gradient = _gradients(inner_loss, tuple(theta.values()))
    inner_loss = inner_loss.detach()  # frees its graph before the outer pass
    outer_loss, direction = _look_ahead(outer, theta, gradient, lr, total)
    del gradient
    with FixedWeights(theta.values(), values=False):
        again = inner(theta, phi)
    gradient = _gradients(again, tuple(theta.values()), create_graph=True)
    return MetaGradient(_mixed(gradient, direction, phi, lr), outer_loss, inner_loss)


def _mixed(
    gradient: tuple[Tensor, ...],
    direction: tuple[Tensor, ...],
    phi: tuple[Tensor, ...],
    lr: float | Tensor,
) -> tuple[Tensor, ...]:
    """Return -lr d/dphi <gradient, direction>."""
    pairs = [(g, v) for g, v in zip(gradient, direction, strict=True) if g.requires_grad]
    if not pairs:
        return _zeros(phi)
    outputs, cotangents = zip(*pairs, strict=True)
    mixed = torch.autograd.grad(outputs, phi, cotangents, allow_unused=True, materialize_grads=True)
    return tuple(-lr * m for m in mixed)


def _forward_over_reverse(
    inner: Inner,
    outer: Outer,
    theta: Parameters,
    phi: tuple[Tensor, ...],
    lr: float | Tensor,
    total: Total,
) -> MetaGradient:
    inner_loss = _scalar(inner(theta, phi), "inner")
    gradient = _gradients(inner_loss, tuple(theta.values()))
    inner_loss = inner_loss.detach()  # frees its graph before the outer pass
    outer_loss, direction = _look_ahead(outer, theta, gradient, lr, total)
    _load_forward_mode()
    with forward_ad.dual_level():
        dual = {
            name: forward_ad.make_dual(value.detach(), v)
            for (name, value), v in zip(theta.items(), direction, strict=True)
        }
        tangents = [
            forward_ad.unpack_dual(gradient).tangent
            for gradient in _gradients(inner(dual, phi), phi)
        ]
    gradients = tuple(
        torch.zeros_like(p) if t is None else -lr * t for p, t in zip(phi, tangents, strict=True)
    )
    return MetaGradient(gradients, outer_loss, inner_loss)


_MODES: dict[str, Callable[..., MetaGradient]] = {
    "mixed_vjp": _mixed_vjp,
    "recomputed": _recomputed,
    "unrolled": _unrolled,
    "forward_over_reverse": _forward_over_reverse,
}


def _look_ahead(
    outer: Outer,
    theta: Parameters,
    gradient: tuple[Tensor, ...],
    lr: float | Tensor,
    total: Total,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return outer(theta_hat), detached, and its gradient with respect to theta_hat."""
    theta_hat = _leaves(_step(theta, total(tuple(g.detach() for g in gradient)), lr))
    loss = _scalar(outer(theta_hat), "outer")
    return loss.detach(), total(_gradients(loss, tuple(theta_hat.values())))


def _step(theta: Parameters, gradient: tuple[Tensor, ...], lr: float | Tensor) -> Parameters:
    """Return one step of plain gradient descent (Eq. 9)."""
    return {name: value - lr * g for (name, value), g in zip(theta.items(), gradient, strict=True)}


def _leaves(theta: Mapping[str, Tensor]) -> Parameters:
    """Return new leaves on the storage of theta, so that its own flags stay as they are."""
    return {name: value.detach().requires_grad_() for name, value in theta.items()}


def _gradients(
    loss: Tensor, inputs: tuple[Tensor, ...], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Return the gradient of a loss, zeros for an input that it does not depend on."""
    if not loss.requires_grad:
        return _zeros(inputs)
    return torch.autograd.grad(
        loss, inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def _zeros(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(tensor) for tensor in tensors)


@functools.cache
def _load_forward_mode() -> None:
    """Let PyTorch compile its forward-mode rules, for which it warns about its own torch.jit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def _scalar(loss: object, name: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.shape != ():
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise InputError(f"{name} must return a scalar tensor, got {got}; average over the batch.")
    return loss


def _check(theta: Mapping[str, Tensor], phi: tuple[Tensor, ...], lr: float | Tensor) -> None:
    if not theta or not phi:
        raise InputError(
            f"theta and phi must each hold at least one tensor, got {len(theta)} and {len(phi)}; "
            "pass dict(model.named_parameters()) and tuple(generator.parameters())."
        )
    for index, tensor in enumerate(phi):
        if not tensor.requires_grad:
            raise InputError(
                f"phi[{index}] must require a gradient, its requires_grad is False; "
                "call requires_grad_() on it first."
            )
    if isinstance(lr, Tensor):
        if lr.shape != ():
            raise InputError(f"lr must be a number or a 0-d tensor, got shape {tuple(lr.shape)}.")
    elif not (math.isfinite(lr) and lr >= 0):
        raise InputError(f"lr must be finite and at least 0, got {lr!r}; give a small float.")
