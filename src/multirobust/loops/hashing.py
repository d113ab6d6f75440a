"""Random numbers of each image: SplitMix64, word by word."""

from __future__ import annotations

import numpy as np

from multirobust.loops.compiled import exact

__all__ = ["splitmix_rows"]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_A, _B, _C, _TURN = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


@exact
def splitmix_rows(keys, turns, first, result):  # pragma: no cover
    """Set result to words of the sequence of each key, from number `first` of its turn on.

    Args:
        keys: (b,), uint64.
        turns: (b,), uint64.
        first: From 0 on, uint64.
        result: (b, n), uint64.
    """
    for row in range(len(keys)):
        state = _mixed(keys[row]) + ((turns[row] << _TURN) + first) * _STEP
        for i in range(result.shape[1]):
            state += _STEP
            result[row, i] = _mixed(state)


@exact
def _mixed(z):  # pragma: no cover
    z = (z ^ (z >> _A)) * _FIRST
    z = (z ^ (z >> _B)) * _SECOND
    return z ^ (z >> _C)
