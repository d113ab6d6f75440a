"""Exact Euclidean projections onto the intersection of a norm ball and the pixel box [0, 1].

With w = x_adv - x and the box written as bounds on the displacement, -x <= delta <= 1 - x:

    linf    delta = clip(w, -r, r) within the box
    l2      delta = clip(t w) within the box,                         sum delta^2 = r^2, t in (0, 1]
    l1      delta = sign(w) clip(|w| - lam, 0, c), c = bound of w,    sum |delta| = r,   lam >= 0

The one unknown of l2 and l1 solves a monotone piecewise linear equation. A search without gradient
finds the linear piece; on it the unknown has a closed form, which is differentiable twice.
(A derivative through a sort of the breakpoints gave NaN.)

Every result satisfies distance <= radius * (1 + 1e-6), measured in float64, and lies in [0, 1].
No function reads a value back from an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multirobust.types import Images

__all__ = ["add_toward", "project_l1", "project_l2", "project_linf", "work_dtype"]

_INSIDE = 1 + 4e-7
"""What counts as inside, relative to the radius: room for the rounding of a projected image, so
that projecting it again returns it bit for bit."""

_FARTHEST = 1e15
"""Displacements are clamped to this, so that their squares cannot overflow float32."""

_MOST_STEPS = 64
"""Upper limit of the root search; it ends an image as soon as that one has converged."""


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float64 if any tensor is, float32 for all others."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def add_toward(x: Tensor, delta: Tensor) -> Tensor:
    """Return `x + delta` rounded toward x: no coordinate moves farther than its delta.

    Plain rounding moves a bright pixel by up to 6e-8, which is 6e-4 of a radius of 1e-4.
    """
    y = x + delta
    return torch.where((y - x).abs() > delta.abs(), torch.nextafter(y, x), y)


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
    w = x_adv - x
    r = _column(radius, w)
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
    boxed = x_adv.clamp(0, 1)
    inside = norm((boxed - x).detach()) <= r * _INSIDE
    w = (x_adv - x).clamp(-_FARTHEST, _FARTHEST)
    bound = torch.where(w > 0, 1 - x, x)
    delta = w.sign() * shrink(w.abs(), bound, r, inside)
    with torch.no_grad():
        fixed = delta.detach()
        size = norm(fixed)
        fixed = fixed * torch.where(size > r, r / size, 1).to(dtype)
        value = add_toward(x.detach(), fixed)
    return torch.where(inside, boxed, _with_value(value, x + delta)).reshape(shape)


def _shrink_l2(a: Tensor, bound: Tensor, r: Tensor, inside: Tensor) -> Tensor:
    """Return min(t a, bound) with l2 norm r, for images (b, n) that are not inside.

    In units of r, and with the largest a as 1, s = t^2 solves sum min(s a^2, bound^2) = 1.
    """
    c = (bound / r).clamp(max=2)  # a bound beyond the radius never binds
    with torch.no_grad():
        caps = c.detach().square()
        peak = _positive(a.detach().amax(1, keepdim=True))
        squares = (a.detach() / peak).square()

        def newton(s: Tensor) -> tuple[Tensor, Tensor]:
            grown = squares * s.to(a.dtype)
            gap = torch.minimum(grown, caps).sum(1, keepdim=True) - 1
            slope = (squares * (grown < caps)).sum(1, keepdim=True)
            return gap, s - gap / _positive(slope)

        first = 1 / _positive(squares.sum(1, keepdim=True))
        root = _root(newton, first, torch.maximum((peak / r).square(), first), inside)
        free = squares * root.to(a.dtype) < caps
        scale = _positive((a.detach() * free).amax(1, keepdim=True))
    a = torch.where(free, a, 0) / scale
    left = 1 - torch.where(free, 0, c).square().sum(1, keepdim=True)
    length = a.square().sum(1, keepdim=True)
    solvable = (left > 0) & (length > 0)
    t = (torch.where(solvable, left, 1) / torch.where(solvable, length, 1)).sqrt()
    t = torch.where(solvable, t, 0) * r
    return torch.where(free, torch.minimum(t * a, bound), bound)


def _shrink_l1(a: Tensor, bound: Tensor, r: Tensor, inside: Tensor) -> Tensor:
    """Return clip(a - lam, 0, bound) with l1 norm r, for images (b, n) that are not inside.

    lam is kept as a float64 number for each image and subtracted in two parts, so that a - lam is
    accurate however small the radius is beside a.
    """
    with torch.no_grad():
        fixed, caps = a.detach(), bound.detach()

        def newton(lam: Tensor) -> tuple[Tensor, Tensor]:
            kept = _minus(fixed, lam).clamp(min=0)
            ratio = torch.minimum(kept, caps).sum(1, keepdim=True) / r
            slope = ((kept > 0) & (kept < caps)).to(a.dtype).sum(1, keepdim=True) / r
            # far from the root the sum falls off rather like an exponential
            drop = torch.where(ratio > 2, ratio * ratio.log(), ratio - 1)
            return 1 - ratio, lam + drop / _positive(slope)

        peak = fixed.amax(1, keepdim=True)
        lam = _root(newton, torch.zeros_like(peak), peak, inside)
        kept = _minus(fixed, lam)
        full = kept >= caps
        free = (kept > 0) & ~full
    kept = torch.where(free, _minus(a, lam), 0)
    bound = torch.where(free | full, bound, 0)
    size = torch.where(free, kept, bound).sum(1, keepdim=True)
    step = (size - r) / free.to(a.dtype).sum(1, keepdim=True).clamp(min=1)
    kept = torch.minimum((kept - step).clamp(min=0), bound)
    return torch.where(free, kept, bound)


def _root(
    newton: Callable[[Tensor], tuple[Tensor, Tensor]], lower: Tensor, upper: Tensor, done: Tensor
) -> Tensor:
    """Solve gap(z) = 0 for each image, with gap increasing and piecewise linear in z >= 0.

    Newton's method, secured by bisection of the bracket: at every third step, and whenever Newton
    leaves the bracket. Bisection halves the number of floating-point values in between, not their
    distance, so that weights over many decades take hardly more steps than others.

    Args:
        newton: Returns the gap at z, as a share of the radius, and a guess of the root; both (b, 1).
        lower: Where the search starts; here gap <= 0. Shape (b, 1).
        upper: Here gap >= 0. Shape (b, 1).
        done: The images that need no root, (b, 1).

    Returns:
        The root in float64; for an image that has not converged, the lower end of its bracket.
    """
    tolerance = 16 * torch.finfo(lower.dtype).eps
    z = lower = from_lower = lower.double()
    upper = from_upper = upper.double()
    for step in range(_MOST_STEPS):
        gap, guess = newton(z)
        done = done | (gap.abs() <= tolerance) | gap.isnan()
        if _can_stop(done):
            break
        below = gap < 0
        lower, upper = torch.where(below, z, lower), torch.where(below, upper, z)
        from_lower = torch.where(below, guess, from_lower)
        from_upper = torch.where(below, from_upper, guess)
        following = _middle(lower, upper)
        if step % 4 < 3:
            other = torch.where(below, from_upper, from_lower)
            following = torch.where((other > lower) & (other < upper), other, following)
            following = torch.where((guess > lower) & (guess < upper), guess, following)
        z = torch.where(done, z, following)
    return torch.where(done, z, lower)


def _can_stop(done: Tensor) -> bool:
    """Tell whether all images have converged, where asking costs nothing: on a plain CPU tensor.

    An image that is done keeps its root, so that stopping early changes no bit of the result.
    """
    if done.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    try:
        return bool(done.all())
    except RuntimeError:  # under a tracer or vmap a tensor has no value to ask for
        return False


def _middle(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the float64 value halfway, in count, between two that are not negative.

    The count goes down to upper / 2^32 at most: a lower end of 0 is a thousand octaves away.
    """
    first, last = lower.view(torch.int64), upper.view(torch.int64)
    return (last - (last - first).clamp(max=32 << 52) // 2).view(torch.float64)


def _minus(a: Tensor, lam: Tensor) -> Tensor:
    """Return a - lam for lam in float64, without rounding lam to the dtype of a."""
    head = lam.to(a.dtype)
    return (a - head) - (lam - head).to(a.dtype)


def _positive(divisor: Tensor) -> Tensor:
    """Return the divisor with 1 for 0, for a quotient whose dividend is 0 as well. NaN stays."""
    return torch.where(divisor == 0, 1, divisor)


def _with_value(value: Tensor, formula: Tensor) -> Tensor:
    """Return the value, bit for bit, with the derivatives of the formula that it rounds."""
    return value + (formula - formula.detach())


def _norm_l2(delta: Tensor) -> Tensor:
    """Return the l2 norm of (b, n), summed in float64, as (b, 1)."""
    return delta.square().sum(1, keepdim=True, dtype=torch.float64).sqrt()


def _norm_l1(delta: Tensor) -> Tensor:
    """Return the l1 norm of (b, n), summed in float64, as (b, 1)."""
    return delta.abs().sum(1, keepdim=True, dtype=torch.float64)


def _column(radius: float | Tensor, like: Tensor) -> Tensor:
    """Return the radius as a tensor that broadcasts over images, without a copy from the host."""
    shape = (1,) * like.ndim
    if isinstance(radius, Tensor):
        return radius.to(like)
    return like.new_full(shape, radius)
