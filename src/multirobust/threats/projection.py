"""Exact Euclidean projections onto the intersection of a norm ball and the pixel box [0, 1].

With w = x_adv - x and the box written as bounds on the displacement, -x <= delta <= 1 - x:

    linf    delta = clip(w, -r, r) within the box
    l2      delta = clip(t w) within the box,                         sum delta^2 = r^2, t in (0, 1]
    l1      delta = sign(w) clip(|w| - lam, 0, c), c = bound of w,    sum |delta| = r,   lam >= 0

The one unknown of l2 and l1 solves a monotone piecewise linear equation. `roots` finds the linear
piece without gradient; on it the unknown has a closed form, which is differentiable twice.
(A derivative through a sort of the breakpoints gave NaN.)

Every result satisfies distance <= radius * (1 + 1e-6), measured in float64, and lies in [0, 1].
No function reads a value back from an accelerator.
Masks are applied as products: `torch.where` with an irregular mask is ten times as slow on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multirobust.threats.fused import fused_projection, is_fusible
from multirobust.threats.native import is_native, native_projection
from multirobust.threats.roots import minus, positive, scale_for_l2, threshold_for_l1
from multirobust.types import Images

__all__ = ["add_toward", "project_l1", "project_l2", "project_linf", "work_dtype"]

_INSIDE = 1 + 4e-7
"""What counts as inside, relative to the radius: room for the rounding of a projected image, so
that projecting it again returns it bit for bit."""

_FARTHEST = 1e15
"""Displacements are clamped to this, so that their squares cannot overflow float32."""


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float64 if any tensor is, float32 for all others."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def add_toward(x: Tensor, delta: Tensor) -> Tensor:
    """Return `x + delta` rounded toward x: no coordinate moves farther than its delta.

    Plain rounding moves a bright pixel by up to 6e-8, which is 6e-4 of a radius of 1e-4.
    """
    y = x + delta
    moved = y - x
    too_far = (moved.abs() > delta.abs()).to(y.dtype)
    return torch.nextafter(y, y - moved * too_far)  # toward itself, it stays


def project_linf(x_adv: Images, x: Images, radius: float | Tensor) -> Images:
    """Return the closest point to x_adv that is within radius of x in every pixel and in [0, 1].

    Args:
        x_adv: Images of any finite values, shape (b, c, h, w).
        x: Images in [0, 1] of the same shape.
        radius: In pixel units; a number, or a tensor of shape (b, 1, 1, 1).

    Returns:
        Float32 images (float64 if either input is), differentiable in both inputs.
    """
    dtype = work_dtype(x_adv, x)
    x_adv, x = x_adv.to(dtype), x.to(dtype)
    r = _column(radius, x)
    if is_native(x_adv, x):
        return native_projection(x_adv, x, r, norm="linf")
    boxed = x_adv.clamp(0, 1)
    delta = torch.minimum(torch.maximum(boxed - x, -r), r)
    with torch.no_grad():
        value = add_toward(x.detach(), delta.detach())
    moved = _with_value(value, x + delta)
    return torch.where((boxed - x).abs() <= r, boxed, moved)


def project_l2(x_adv: Images, x: Images, radius: float | Tensor) -> Images:
    """Return the closest point to x_adv that is within radius of x in l2 and in [0, 1].

    Args:
        x_adv: Images of any finite values, shape (b, c, h, w).
        x: Images in [0, 1] of the same shape.
        radius: In pixel units; a number, or a tensor of shape (b, 1, 1, 1).

    Returns:
        Float32 images (float64 if either input is), twice differentiable in both inputs. An image
        that is inside after the clip to [0, 1] is only clipped.
    """
    return _project(x_adv, x, radius, _shrink_l2, _norm_l2)


def project_l1(x_adv: Images, x: Images, radius: float | Tensor) -> Images:
    """Return the closest point to x_adv that is within radius of x in l1 and in [0, 1].

    Args:
        x_adv: Images of any finite values, shape (b, c, h, w).
        x: Images in [0, 1] of the same shape.
        radius: In pixel units; a number, or a tensor of shape (b, 1, 1, 1).

    Returns:
        Float32 images (float64 if either input is), twice differentiable in both inputs. An image
        that is inside after the clip to [0, 1] is only clipped.
    """
    return _project(x_adv, x, radius, _shrink_l1, _norm_l1)


def _project(
    x_adv: Tensor,
    x: Tensor,
    radius: float | Tensor,
    shrink: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """Clip the images that are inside, shrink the displacement of the others; guard the radius."""
    dtype, shape = work_dtype(x_adv, x), x_adv.shape
    x_adv, x = x_adv.to(dtype).flatten(1), x.to(dtype).flatten(1)
    r = _column(radius, x).flatten(1)
    for serves, projection in ((is_fusible, fused_projection), (is_native, native_projection)):
        if serves(x_adv, x):
            name = "l2" if norm is _norm_l2 else "l1"
            limits = {"inside": _INSIDE, "farthest": _FARTHEST}
            return projection(x_adv, x, r, norm=name, **limits).reshape(shape)
    boxed = x_adv.clamp(0, 1)
    start = norm((boxed - x).detach())
    inside = start <= r * _INSIDE
    w = (x_adv - x).clamp(-_FARTHEST, _FARTHEST)
    sign = w.sign()
    bound = ((sign + 1) / 2 - x).abs()  # to 1 or to 0
    delta = sign * shrink(w.abs(), bound, r, inside)
    with torch.no_grad():
        fixed = delta.detach()
        size = norm(fixed)
        share = torch.where(size > r, r / size, 1) * torch.where(start.isnan(), start, 1)
        fixed = fixed * share.to(dtype)
        value = add_toward(x.detach(), fixed)
    return torch.where(inside, boxed, _with_value(value, x + delta)).reshape(shape)


def _shrink_l2(a: Tensor, bound: Tensor, r: Tensor, inside: Tensor) -> Tensor:
    """Return min(t a, bound) with l2 norm r, for images (b, n) that are not inside.

    The free coordinates are those below their bound. On them t^2 = (r^2 - sum bound^2) / sum a^2,
    the first sum over the other coordinates; in units of r, and a in units of its largest.
    """
    c = (bound / r).clamp(max=2)  # a bound beyond the radius never binds
    with torch.no_grad():
        peak = positive(a.amax(1, keepdim=True))
        squares, caps = (a / peak).square(), c.square()
        s = scale_for_l2(squares, caps, (peak / r).square(), inside)
        free = squares * s.to(a.dtype) < caps
        scale = positive((a * free).amax(1, keepdim=True))
        free = free.to(a.dtype)
    a, full = a * free / scale, 1 - free
    left = 1 - (c * full).square().sum(1, keepdim=True)
    length = a.square().sum(1, keepdim=True)
    solvable = (left > 0) & (length > 0)
    t = (torch.where(solvable, left, 1) / torch.where(solvable, length, 1)).sqrt()
    t = torch.where(solvable, t, 0) * r
    return torch.minimum(t * a, bound.detach()) + bound * full


def _shrink_l1(a: Tensor, bound: Tensor, r: Tensor, inside: Tensor) -> Tensor:
    """Return clip(a - lam, 0, bound) with l1 norm r, for images (b, n) that are not inside.

    The free coordinates are those strictly between 0 and their bound. On them, and with the sum of
    the full ones, lam = (sum a + sum bound - r) / count; solved for the small rest of lam.
    """
    with torch.no_grad():
        lam = threshold_for_l1(a, bound, r, inside)
        kept = minus(a, lam)
        full = (kept >= bound).to(a.dtype)
        free = (kept > 0).to(a.dtype) * (1 - full)
        full = full * (kept > 0)
        count = free.sum(1, keepdim=True).clamp(min=1)
    kept, bounded = minus(a, lam) * free, bound * full
    rest = ((kept + bounded).sum(1, keepdim=True) - r) / count
    return torch.minimum((kept - rest * free).clamp(min=0), bound.detach()) + bounded


def _with_value(value: Tensor, formula: Tensor) -> Tensor:
    """Return the value, bit for bit, with the derivatives of the formula that it rounds."""
    return value + (formula - formula.detach())


def _norm_l2(delta: Tensor) -> Tensor:
    """Return the l2 norm of (b, n), summed in float64, as (b, 1)."""
    return torch.linalg.vector_norm(delta, dim=1, keepdim=True, dtype=torch.float64)


def _norm_l1(delta: Tensor) -> Tensor:
    """Return the l1 norm of (b, n), summed in float64, as (b, 1)."""
    return delta.abs().sum(1, keepdim=True, dtype=torch.float64)


def _column(radius: float | Tensor, like: Tensor) -> Tensor:
    """Return the radius as a tensor that broadcasts over images, without a copy from the host."""
    shape = (1,) * like.ndim
    if isinstance(radius, Tensor):
        return radius.to(like)
    return like.new_full(shape, radius)
