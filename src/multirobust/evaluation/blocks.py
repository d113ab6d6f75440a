"""How an evaluation is cut: blocks of images, and shards of blocks for several machines."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

from multirobust.errors import InputError

__all__ = ["Shard", "blocks_of"]


@final
@dataclass(frozen=True)
class Shard:
    """One of several disjoint parts of an evaluation.

    Part 2 of 4 takes the second block of images of every four. A block has its own random numbers,
    so that all parts together give what one evaluation gives.

    Args:
        part: From 1 to `of`.
        of: Number of parts, at least 1.
    """

    part: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.part <= self.of:
            raise InputError(
                f"shard: must be i/n with 1 <= i <= n, got {self.part}/{self.of}; the first of "
                "four is 1/4."
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text such as "2/4" names."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not match:
            raise InputError(f"shard: must be i/n, such as 2/4, got {text!r}.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.part}/{self.of}"


def blocks_of(images: int, size: int, shard: Shard) -> list[range]:
    """Return the positions of each block of a shard, in order.

    Args:
        images: Number of images of the whole evaluation, at least 1.
        size: Images a block, at least 1; the last has fewer.
        shard: Which blocks.

    Raises:
        InputError: If the size is below 1, or there are fewer blocks than shards.
    """
    if size < 1:
        raise InputError(f"block_size: must be at least 1, got {size}.")
    count = math.ceil(images / size)
    if count < shard.of:
        raise InputError(
            f"shard: {images} images make {count} blocks of {size}, too few for {shard.of} "
            f"shards; use fewer shards, or evaluation.block_size={max(1, images // shard.of)} in "
            "all of them."
        )
    starts = range((shard.part - 1) * size, images, shard.of * size)
    return [range(start, min(start + size, images)) for start in starts]
