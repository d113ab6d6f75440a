"""The exact projections onto ball and box, image by image."""

from __future__ import annotations

import numpy as np

from multirobust.loops.compiled import exact, quick

__all__ = ["clip_rows", "project_rows"]

_MOST_STEPS = 160
"""A search that Newton's method cannot shorten halves a bracket of 1e15 down to rounding in 110."""

_MOST_POLISHING = 8

_CLOSE = 1e-13
"""When a search ends, relative to the radius."""

_BELOW, _ABOVE = 1 - 1.001 * 2.0**-24, 1 + 1.001 * 2.0**-24
_ZERO, _ONE = np.float32(0), np.float32(1)


@exact
def project_rows(x_adv, x, r, result, one_norm, inside, farthest):  # pragma: no cover
    """Project each row of x_adv onto the ball of radius r around that of x, within [0, 1].

    See `threats.projection` for the two equations; the rounding is that of its PyTorch form.

    Args:
        x_adv: Any values, (b, n), float32.
        x: In [0, 1], (b, n), float32.
        r: Radius, (b,) or (1,), float32.
        result: Where the points go, (b, n), float32.
        one_norm: Whether the norm is l1; else l2.
        inside: What counts as inside, relative to the radius: such rows are only clipped.
        farthest: Displacements are clamped to this.
    """
    rows, size = x.shape
    a, bound = np.empty(size), np.empty(size)
    delta = np.empty(size, np.float32)
    for row in range(rows):
        radius = r[row if len(r) > 1 else 0]
        if _has_nan(x_adv[row]):
            result[row] = np.nan
            continue
        _box(x_adv[row], x[row], result[row], delta)
        if _length(delta, one_norm) <= radius * inside:
            continue
        _measure(x_adv[row], x[row], a, bound, delta, farthest)
        r64 = np.float64(radius)
        if one_norm:
            _subtract(a, _threshold(a, bound, r64))
            _shrink_l1(a, bound, delta, _rest(a, bound, r64))
        else:
            _shrink_l2(a, bound, delta, np.sqrt(_scale(a, bound, r64 * r64)))
        length = _length(delta, one_norm)
        share = np.float32(r64 / length) if length > r64 else _ONE
        _add(x[row], delta, share, result[row])


@exact
def _has_nan(values):  # pragma: no cover
    found = 0
    for i in range(len(values)):
        found += values[i] != values[i]
    return found > 0


@quick
def _box(x_adv, x, boxed, delta):  # pragma: no cover
    for i in range(len(x)):
        boxed[i] = min(max(x_adv[i], _ZERO), _ONE)
        delta[i] = boxed[i] - x[i]


@quick
def _length(delta, one_norm):  # pragma: no cover
    """Return the norm of a float32 row, summed in float64."""
    total = 0.0
    if one_norm:
        for i in range(len(delta)):
            total += np.float64(abs(delta[i]))
        return total
    for i in range(len(delta)):
        total += np.float64(delta[i]) * np.float64(delta[i])
    return np.sqrt(total)


@quick
def _measure(x_adv, x, a, bound, delta, farthest):  # pragma: no cover
    """Set delta to the displacements, a and bound to their sizes and bounds."""
    for i in range(len(x)):
        w = min(max(x_adv[i] - x[i], -farthest), farthest)
        delta[i] = w
        a[i] = abs(w)
        bound[i] = _ONE - x[i] if w > _ZERO else x[i]


@quick
def _kept(a, bound, lam):  # pragma: no cover
    """Return sum clip(a - lam, 0, bound), and how many are strictly between their ends."""
    total = free = 0.0
    for i in range(len(a)):
        kept = min(max(a[i] - lam, 0.0), bound[i])
        total += kept
        free += 1.0 if (kept > 0.0) & (kept < bound[i]) else 0.0
    return total, free


@exact
def _threshold(a, bound, r):  # pragma: no cover
    """Solve sum clip(a - lam, 0, bound) = r for lam: Newton's method, secured by bisection."""
    low, lam, last = 0.0, 0.0, np.inf
    high = np.sqrt(_grown(a, bound, 0.0)[1])  # at least the largest of a
    for _ in range(_MOST_STEPS):
        total, free = _kept(a, bound, lam)
        gap = total - r
        if gap > 0:
            low = lam
        else:
            high = lam
        fast = abs(gap) <= last / 2
        following = lam + gap / max(free, 1.0)
        if not (fast and low < following < high):
            following = (low + high) / 2
        last = abs(gap) if fast else np.inf
        if abs(gap) <= _CLOSE * r or following == lam:
            break
        lam = following
    return lam


@exact
def _subtract(a, lam):  # pragma: no cover
    for i in range(len(a)):
        a[i] -= lam


@exact
def _rest(a, bound, r):  # pragma: no cover
    """Return what is missing to a threshold that is subtracted from a.

    Of sizes of 1e15, float64 leaves the threshold itself no digit for it.
    """
    rest = 0.0
    for _ in range(_MOST_POLISHING):
        total, free = _kept(a, bound, rest)
        if abs(total - r) <= _CLOSE * r:
            break
        rest += (total - r) / max(free, 1.0)
    return rest


@quick
def _grown(a, bound, s):  # pragma: no cover
    """Return sum min(s a^2, bound^2), and the sum of the a^2 for which s a^2 is less."""
    total = slope = 0.0
    for i in range(len(a)):
        square, cap = a[i] * a[i], bound[i] * bound[i]
        grown = square * s
        total += min(grown, cap)
        slope += square if grown < cap else 0.0
    return total, slope


@exact
def _scale(a, bound, target):  # pragma: no cover
    """Solve sum min(s a^2, bound^2) = target for s: Newton's method, which never overshoots."""
    total = _grown(a, bound, 0.0)[1]
    s = target / (total if total > 0 else 1.0)
    for _ in range(_MOST_STEPS):
        reached, slope = _grown(a, bound, s)
        gap = target - reached
        following = s + gap / (slope if slope > 0 else 1.0)
        if gap <= _CLOSE * target or slope <= 0 or following <= s:
            break
        s = following
    return s


@quick
def _shrink_l1(a, bound, delta, rest):  # pragma: no cover
    """Set delta to the projected displacements, of the signs that it has."""
    for i in range(len(a)):
        size = np.float32(min(max(a[i] - rest, 0.0), bound[i]))
        delta[i] = -size if delta[i] < 0 else size


@quick
def _shrink_l2(a, bound, delta, t):  # pragma: no cover
    for i in range(len(a)):
        size = np.float32(min(t * a[i], bound[i]))
        delta[i] = -size if delta[i] < 0 else size


@exact
def _add(x, delta, share, result):  # pragma: no cover
    """Set result to x + share * delta, rounded toward x.

    A little more than half a unit of its last place takes a number to its neighbor.
    """
    for i in range(len(x)):
        moved = delta[i] * share
        y = x[i] + moved
        gone = y - x[i]
        neighbor = np.float32(np.float64(y) * (_BELOW if gone > _ZERO else _ABOVE))
        result[i] = neighbor if abs(gone) > abs(moved) else y


@exact
def clip_rows(x_adv, x, r, result):  # pragma: no cover
    """Project each row onto the linf ball and [0, 1]: see `project_rows` for the arguments."""
    for row in range(len(x)):
        radius = r[row if len(r) > 1 else 0]
        _clip(x_adv[row], x[row], radius, result[row])


@exact
def _clip(x_adv, x, radius, result):  # pragma: no cover
    for i in range(len(x)):
        value = x_adv[i]
        boxed = _ONE if value > _ONE else (_ZERO if value < _ZERO else value)
        w = boxed - x[i]
        moved = radius if w > radius else (-radius if w < -radius else w)
        y = x[i] + moved
        gone = y - x[i]
        neighbor = np.float32(np.float64(y) * (_BELOW if gone > _ZERO else _ABOVE))
        y = neighbor if abs(gone) > abs(moved) else y
        result[i] = boxed if abs(w) <= radius else y
