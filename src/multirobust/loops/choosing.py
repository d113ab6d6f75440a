"""Which pixels have the greatest gradients, image by image."""

from __future__ import annotations

import numpy as np

from multirobust.loops.compiled import exact

__all__ = ["differing_rows", "sparse_move_rows", "sparse_rows"]

_SHIFT = 20
"""Scores are sorted into bins by exponent and the first three digits."""

_BINS = 1 << 31 - _SHIFT
_ZERO, _ONE = np.float32(0), np.float32(1)


@exact
def sparse_move_rows(gradient, pixels, counts, steps, result):  # pragma: no cover
    """Set result to the pixels, a step of l1 norm `steps` on in those of largest gradient.

    Only in those that [0, 1] lets move; in all that equal the least of them.

    Args:
        gradient: (b, n), float32.
        pixels: In [0, 1], (b, n), float32.
        counts: From 1 to n, (b,), int64.
        steps: (b,), float32.
        result: (b, n), float32.
    """
    rows, size = gradient.shape
    score, bins = np.empty(size, np.float32), np.empty(_BINS, np.int32)
    for row in range(rows):
        least = _least(gradient[row], pixels[row], score, bins, counts[row])
        _move(gradient[row], pixels[row], score, least, steps[row], result[row])


@exact
def _move(gradient, pixels, score, least, step, result):  # pragma: no cover
    chosen = 0
    for i in range(len(score)):
        chosen += (score[i] >= least) & (score[i] > _ZERO)
    each = step / np.float32(max(chosen, 1)) if least > _ZERO else _ZERO
    for i in range(len(score)):
        moved = each if gradient[i] > _ZERO else -each
        result[i] = pixels[i] + (moved if score[i] >= least else _ZERO)


@exact
def differing_rows(a, b, result):  # pragma: no cover
    """Set result (b,) to the number of pixels in which rows differ; all float32."""
    for row in range(len(a)):
        result[row] = _differing(a[row], b[row])


@exact
def _differing(a, b):  # pragma: no cover
    count = 0
    for i in range(len(a)):
        count += a[i] != b[i]
    return count


@exact
def sparse_rows(gradient, pixels, count, result):  # pragma: no cover
    """Set result to equal steps of l1 norm 1 in the `count` coordinates of largest gradient.

    Only of those that [0, 1] lets move; of equal ones at the edge, the first.

    Args:
        gradient: (b, n), float32.
        pixels: In [0, 1], (b, n), float32.
        count: At least 1, at most n.
        result: (b, n), float32.
    """
    rows, size = gradient.shape
    score, bins = np.empty(size, np.float32), np.empty(_BINS, np.int32)
    for row in range(rows):
        least = _least(gradient[row], pixels[row], score, bins, count)
        _choose(gradient[row], score, least, count, result[row])


@exact
def _least(gradient, pixels, score, bins, count):  # pragma: no cover
    """Set score to the gradients that count, and return the count-th greatest.

    Of numbers from 0 on, the bits order like they do.
    """
    for i in range(len(score)):
        g, value = gradient[i], pixels[i]
        movable = ((g > _ZERO) & (value < _ONE)) | ((g < _ZERO) & (value > _ZERO))
        score[i] = abs(g) if movable else _ZERO
    bits = score.view(np.int32)
    bins[:] = 0
    for i in range(len(bits)):
        bins[bits[i] >> _SHIFT] += 1
    above, last = 0, len(bins) - 1
    while above + bins[last] < count:
        above += bins[last]
        last -= 1
    among, found = np.empty(bins[last], np.float32), 0
    for i in range(len(bits)):
        if bits[i] >> _SHIFT == last:
            among[found] = score[i]
            found += 1
    among.sort()
    return among[found - (count - above)]


@exact
def _choose(gradient, score, least, count, result):  # pragma: no cover
    above = positive = 0
    for i in range(len(score)):
        above += score[i] > least
        positive += score[i] > _ZERO
    step = _ONE / np.float32(max(min(count, positive), 1))
    for i in range(len(score)):
        chosen = score[i] > least
        if score[i] == least and least > _ZERO and above < count:
            chosen, above = True, above + 1
        result[i] = (step if gradient[i] > _ZERO else -step) if chosen else _ZERO
