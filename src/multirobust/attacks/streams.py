"""Random numbers that belong to an image: the same whatever batch it is in, and however large.

A generator deals its numbers to whoever is in the batch. A random search whose numbers come from a
key of each image instead searches each image alike alone, in any batch, and in any suite.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from multirobust.threats.native import splitmix
from multirobust.types import Images

__all__ = ["Stream", "image_keys"]

_STEP = -7046029254386353131  # 2^64 / golden ratio, as a signed number
_FACTORS = (-4658895280553007687, -7723592293110705685)
_SHIFTS = (30, 27, 31)


@final
class Stream:
    """Numbers from keys and counters: SplitMix64, one sequence for each row.

    Args:
        keys: Of the rows, (b,), int64.
        turn: Which part of its sequence each row is at, (b,), int64; a part has 2^32 numbers.

    References: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """

    def __init__(self, keys: Tensor, turn: Tensor):
        self._keys, self._turn, self._drawn = keys, turn, 0

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1) of shape (b, *shape), float32."""
        return (self._bits(shape) >> 40 & 0xFFFFFF).float() / 2**24

    def signs(self, *shape: int, like: Tensor) -> Tensor:
        """Return -1 or 1 with equal probability, (b, *shape), in the dtype of a tensor."""
        return (self._bits(shape) >> 63 & 1).to(like.dtype) * 2 - 1

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        first, count = self._drawn, torch.Size(shape).numel()
        self._drawn += count
        words = splitmix(self._keys, self._turn, first, count)
        if words is None:
            index = torch.arange(first + 1, self._drawn + 1, device=self._keys.device)
            start = _mixed(self._keys) + (self._turn << 32) * _STEP
            words = _mixed(start[:, None] + index * _STEP)
        return words.reshape(-1, *shape)


def image_keys(x: Images, seed: int) -> Tensor:
    """Return a key of each image, (b,) int64, from a seed and its pixels in float32 alone."""
    pixels = x.detach().float().flatten(1).contiguous().view(torch.int32).long()
    weights = _mixed(torch.arange(1, pixels.shape[1] + 1, device=x.device) * _STEP)
    return _mixed((pixels * weights).sum(1) + _mixed(torch.tensor(seed, device=x.device)))


def _mixed(z: Tensor) -> Tensor:
    """Return the bits of SplitMix64 for its states; products wrap around."""
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        z = (z ^ (z >> shift & (1 << 64 - shift) - 1)) * factor
    return z
