"""Where labels go so that none covers another, a point or the edge of the figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

__all__ = ["Rectangle", "overlap", "place_labels"]

Rectangle: TypeAlias = tuple[float, float, float, float]
"""Left, bottom, right, top, in any one unit of length."""

RADII = (8.0, 14.0, 22.0, 32.0, 44.0, 58.0, 76.0, 100.0, 130.0, 165.0, 200.0)
DIRECTIONS = 24


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    box: Rectangle,
    obstacles: Sequence[Rectangle] = (),
) -> list[Rectangle]:
    """Place one label near each anchor, greedily: the nearest free spot, to the right first.

    Args:
        anchors: Points to label.
        sizes: Width and height of each label.
        box: Labels stay inside.
        obstacles: Rectangles that no label may cover, such as markers and error bars.

    Returns:
        The rectangle of each label. Where no spot is free it is the one that covers least.
    """
    taken = list(obstacles)
    placed: dict[int, Rectangle] = {}
    for i in sorted(range(len(anchors)), key=lambda i: (anchors[i], i)):
        best, least = None, math.inf
        for spot in _spots(anchors[i], sizes[i]):
            covered = _outside(spot, box) + sum(overlap(spot, other) for other in taken)
            if covered < least:
                best, least = spot, covered
            if least == 0:
                break
        assert best is not None
        placed[i] = best
        taken.append(best)
    return [placed[i] for i in range(len(anchors))]


def overlap(a: Rectangle, b: Rectangle) -> float:
    """Return the area that two rectangles share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _spots(anchor: tuple[float, float], size: tuple[float, float]) -> Iterator[Rectangle]:
    """Walk around the anchor in growing circles; the label touches the circle from outside."""
    x, y = anchor
    width, height = size
    for radius in RADII:
        for turn in sorted(range(DIRECTIONS), key=lambda turn: min(turn, DIRECTIONS - turn)):
            angle = 2 * math.pi * turn / DIRECTIONS
            center_x = x + math.cos(angle) * (radius + width / 2)
            center_y = y + math.sin(angle) * (radius + height / 2)
            left, bottom = center_x - width / 2, center_y - height / 2
            yield left, bottom, left + width, bottom + height


def _outside(spot: Rectangle, box: Rectangle) -> float:
    """Return the area of the spot beyond the box, at ten times its price."""
    return 10 * ((spot[2] - spot[0]) * (spot[3] - spot[1]) - overlap(spot, box))
