"""The Triton kernel of `threats.fused`: a program projects an image. Importing it needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["project_rows"]

_MOST_STEPS = tl.constexpr(160)
"""A search that Newton's method cannot shorten halves a bracket of 1e15 down to rounding in 110."""

_CLOSE = tl.constexpr(1e-13)
"""When a search ends, relative to the radius."""


@triton.jit
def project_rows(
    x_adv_start,
    x_start,
    r_start,
    result_start,
    size,
    r_stride,
    inside,
    farthest,
    ONE_NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Project row `program_id` of x_adv onto the ball of radius r around that of x, within [0, 1].

    See `threats.projection` for the two equations; the rounding is that of its PyTorch form.
    """
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < size
    x_adv = tl.load(x_adv_start + row * size + offsets, mask=mask, other=0.0)
    x = tl.load(x_start + row * size + offsets, mask=mask, other=0.0)
    r = tl.load(r_start + row * r_stride)
    radius = r.to(tl.float64)
    unknown = tl.sum((x_adv != x_adv).to(tl.int32)) > 0

    boxed = tl.minimum(tl.maximum(x_adv, 0.0), 1.0)
    start = _length(boxed - x, ONE_NORM)
    within = start <= (r * inside).to(tl.float64)
    w = tl.minimum(tl.maximum(x_adv - x, -farthest), farthest)
    a = tl.abs(w).to(tl.float64)
    bound = tl.where(w > 0, 1.0 - x, x).to(tl.float64)
    if ONE_NORM:
        lam = _threshold(a, bound, radius, within | unknown)
        size_of = tl.minimum(tl.maximum(a - lam, 0.0), bound)
    else:
        s = _scale(a * a, bound * bound, radius * radius, within | unknown)
        size_of = tl.minimum(tl.sqrt(s) * a, bound)
    delta = tl.where(w < 0, -size_of, size_of).to(tl.float32)

    length = _length(delta, ONE_NORM)
    share = tl.where(length > radius, radius / tl.where(length > 0, length, 1.0), 1.0)
    delta = delta * share.to(tl.float32)
    y = x + delta
    moved = y - x
    bits = y.to(tl.int32, bitcast=True)  # of a number from 0 on: they count up with it
    nearer = (bits + tl.where(moved > 0, -1, 1)).to(tl.float32, bitcast=True)
    y = tl.where(tl.abs(moved) > tl.abs(delta), nearer, y)
    y = tl.where(within, boxed, y)
    y = tl.where(unknown, float("nan"), y)
    tl.store(result_start + row * size + offsets, y, mask=mask)


@triton.jit
def _length(delta, ONE_NORM: tl.constexpr):
    """Return the norm of a float32 row, summed in float64."""
    wide = delta.to(tl.float64)
    if ONE_NORM:
        return tl.sum(tl.abs(wide))
    return tl.sqrt(tl.sum(wide * wide))


@triton.jit
def _threshold(a, bound, r, done):
    """Solve sum clip(a - lam, 0, bound) = r for lam: Newton's method, secured by bisection."""
    low = r * 0.0
    lam = low
    high = tl.max(a)
    last = r + float("inf")
    step = 0
    going = done == 0
    while going:
        kept = tl.minimum(tl.maximum(a - lam, 0.0), bound)
        gap = tl.sum(kept) - r
        free = tl.sum(((kept > 0) & (kept < bound)).to(tl.float64))
        low = tl.where(gap > 0, lam, low)
        high = tl.where(gap > 0, high, lam)
        guess = lam + gap / tl.maximum(free, 1.0)
        middle = (low + high) / 2
        fast = tl.abs(gap) <= last / 2
        following = tl.where(fast & (guess > low) & (guess < high), guess, middle)
        last = tl.where(fast, tl.abs(gap), float("inf"))
        step += 1
        going = (tl.abs(gap) > _CLOSE * r) & (step < _MOST_STEPS) & (following != lam)
        lam = tl.where(going, following, lam)
    return lam


@triton.jit
def _scale(squares, caps, target, done):
    """Solve sum min(s squares, caps) = target for s: Newton's method, which never overshoots."""
    total = tl.sum(squares)
    s = target / tl.where(total > 0, total, 1.0)
    step = 0
    going = done == 0
    while going:
        grown = squares * s
        gap = target - tl.sum(tl.minimum(grown, caps))
        slope = tl.sum(tl.where(grown < caps, squares, 0.0))
        following = s + gap / tl.where(slope > 0, slope, 1.0)
        step += 1
        going = (gap > _CLOSE * target) & (slope > 0) & (step < _MOST_STEPS) & (following > s)
        s = tl.where(going, following, s)
    return s
