"""Which image gets which attack, when the shares are given: by chance, or where it counts most."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

__all__ = ["Mixing", "assigned", "dealt", "sizes_of"]

Mixing: TypeAlias = Literal["stratified", "independent", "batch"]


def sizes_of(shares: Sequence[float], images: int, offset: float) -> list[int]:
    """Return how many of the images each group gets: within one of its share, and all in all.

    By systematic sampling: with an offset drawn uniformly from [0, 1), the expectation of each size
    is its share of the images exactly.

    >>> sizes_of([0.5, 0.3, 0.2], 7, 0.5)
    [4, 2, 1]
    """
    ends = [images * part / sum(shares) + offset for part in itertools.accumulate(shares)]
    marks = [0, *(int(end) for end in ends[:-1]), images]
    return [stop - start for start, stop in itertools.pairwise(marks)]


def dealt(
    shares: Sequence[float], images: int, mixing: Mixing | str, generator: torch.Generator
) -> list[int]:
    """Return the group of each image, drawn with these probabilities.

    Args:
        shares: Of the groups; they sum to one.
        images: How many.
        mixing: "stratified" gives each group its share of the batch, see `sizes_of`, in random
            order; "independent" draws for each image; "batch" draws one group for all.
        generator: On the CPU.
    """
    draws = {"stratified": 1, "independent": images, "batch": 1}[mixing]
    points = torch.rand(draws, dtype=torch.float64, generator=generator)
    if mixing == "stratified":
        order = torch.randperm(images, generator=generator).tolist()
        sizes = sizes_of(shares, images, points.item())
        sorted_groups = [group for group, size in enumerate(sizes) for _ in range(size)]
        return [sorted_groups[place] for place in order]
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    drawn = torch.searchsorted(ends, points, right=True).clamp(max=len(shares) - 1).tolist()
    return drawn if mixing == "independent" else drawn * images


def assigned(values: Sequence[Sequence[float]], sizes: Sequence[int]) -> list[int]:
    """Return the group of each image, in groups of these sizes, of greatest total value.

    Exact. From each image in its best group, images leave the groups that are too large along the
    cheapest chains of moves, one image a move (successive shortest paths; the distances are the
    dual prices of the groups).

    Args:
        values: Of each image in each group, (n, k), finite.
        sizes: Of the groups; they sum to n.
    """
    count = len(sizes)
    groups = [max(range(count), key=row.__getitem__) for row in values]
    excess = [groups.count(k) - size for k, size in enumerate(sizes)]
    moves: dict[tuple[int, int], list[tuple[float, int]]] = {
        pair: [] for pair in itertools.permutations(range(count), 2)
    }

    def enter(image: int, group: int) -> None:
        row = values[image]
        for other in range(count):
            if other != group:
                heapq.heappush(moves[group, other], (row[group] - row[other], image))

    def cheapest(pair: tuple[int, int]) -> float:
        heap = moves[pair]
        while heap and groups[heap[0][1]] != pair[0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else float("inf")

    for image, group in enumerate(groups):
        enter(image, group)
    while any(surplus > 0 for surplus in excess):
        costs = {pair: cheapest(pair) for pair in moves}
        path = _cheapest_path(costs, excess)
        for pair in itertools.pairwise(path):
            image = moves[pair][0][1]
            groups[image] = pair[1]
            enter(image, pair[1])
        excess[path[0]] -= 1
        excess[path[-1]] += 1
    return groups


def _cheapest_path(costs: dict[tuple[int, int], float], excess: Sequence[int]) -> list[int]:
    """Return the cheapest chain of groups from one that is too large to one that is too small.

    Costs may be negative, but no circle of moves gains anything (Bellman and Ford).
    """
    price = [0.0 if surplus > 0 else float("inf") for surplus in excess]
    before: list[int | None] = [None] * len(excess)
    for _ in excess:
        for (source, target), cost in costs.items():
            if price[source] + cost < price[target] - 1e-12:
                price[target] = price[source] + cost
                before[target] = source
    end = min((k for k, surplus in enumerate(excess) if surplus < 0), key=price.__getitem__)
    path = [end]
    while (source := before[path[0]]) is not None:
        path.insert(0, source)
    return path
