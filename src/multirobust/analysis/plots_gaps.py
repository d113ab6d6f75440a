"""The figure of a study at equal cost: differences to a reference, and accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from multirobust.analysis.canvas import sheet
from multirobust.analysis.curves import DASHES, LINE_COLORS
from multirobust.analysis.plots import FAINT, INK, WIDTH, printable
from multirobust.errors import InputError

__all__ = ["CostPoint", "Gap", "gaps_and_costs"]


@final
@dataclass(frozen=True)
class Gap:
    """What one way of training has over the reference.

    Args:
        name: Of the way.
        family: Rows of one family share a color.
        mean: Difference of the union in points.
        half: Half of its interval in points; None where it is not known.
    """

    name: str
    family: str
    mean: float
    half: float | None = None

    def __str__(self) -> str:
        half = "" if self.half is None else f" ± {self.half:.1f}"
        return f"{self.name}: {self.mean:+.1f}{half} points."


@final
@dataclass(frozen=True)
class CostPoint:
    """An accuracy, and what it cost.

    Args:
        curve: Points of one curve are joined by a line.
        name: Stands beside the point.
        cost: Above 0.
        value: Accuracy in [0, 1].
        low: Lower end of its interval.
        high: Upper end.
    """

    curve: str
    name: str
    cost: float
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value = f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{self.curve}, {self.name}: {value} for {self.cost:.0f} passes."


def gaps_and_costs(gaps: Sequence[Gap], points: Sequence[CostPoint], *, reference: str) -> str:
    """Draw a dot with its interval for each difference, and beside it union against passes.

    A part without anything to show is left out.

    Args:
        gaps: From top to bottom.
        points: Each curve in the order in which it is drawn.
        reference: What the differences are taken to.

    Returns:
        An SVG document.

    Raises:
        InputError: If there is nothing to draw, or a number is out of its range.
    """
    _check(gaps, points)
    parts = [part for part in (gaps, points) if part]
    height = max(3.0, 0.17 * len(gaps) + 0.9)
    title = f"Union at equal passes beside {printable(reference)}, and against the passes"
    said = " ".join(str(part) for part in (*gaps, *points))
    with sheet(WIDTH * len(parts) / 2, height, title=title, description=said) as page:
        panels = page.figure.subplots(1, len(parts), squeeze=False)[0]
        if gaps:
            _draw_gaps(panels[0], gaps, reference)
        if points:
            _draw_points(panels[-1], points)
    return page.svg


def _draw_gaps(axes: Any, gaps: Sequence[Gap], reference: str) -> None:
    colors = _colors([gap.family for gap in gaps])
    for place, gap in enumerate(gaps):
        axes.errorbar(
            [gap.mean], [place], xerr=None if gap.half is None else [gap.half], fmt="o",
            color=colors[gap.family], markersize=4, elinewidth=1.1, capsize=2,
        )  # fmt: skip
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(gaps)), [printable(gap.name) for gap in gaps], fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(gaps) - 0.4, -0.6)
    axes.set_xlabel(f"Union less that of {printable(reference)} (points)")
    axes.xaxis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_points(axes: Any, points: Sequence[CostPoint]) -> None:
    curves = dict.fromkeys(point.curve for point in points)
    for index, curve in enumerate(curves):
        own = [point for point in points if point.curve == curve]
        cost = np.array([point.cost for point in own])
        value, low, high = (
            100 * np.array([getattr(point, name) for point in own])
            for name in ("value", "low", "high")
        )
        axes.errorbar(
            cost, value, np.stack([value - low, high - value]), fmt="o",
            linestyle=DASHES[index % len(DASHES)], color=LINE_COLORS[index % len(LINE_COLORS)],
            markersize=4.5, linewidth=1.2, elinewidth=1.0, capsize=2, label=printable(curve),
        )  # fmt: skip
        for point in own:
            axes.annotate(
                printable(point.name), (point.cost, 100 * point.value), xytext=(4, 3),
                textcoords="offset points", fontsize=7,
            )  # fmt: skip
    axes.set_xlabel("Passes of each training image")
    axes.set_ylabel("Acc union (%)")
    axes.margins(x=0.15, y=0.12)
    axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=7.5)


def _colors(families: Sequence[str]) -> dict[str, str]:
    found = dict.fromkeys(families)
    return {name: LINE_COLORS[place % len(LINE_COLORS)] for place, name in enumerate(found)}


def _check(gaps: Sequence[Gap], points: Sequence[CostPoint]) -> None:
    if not gaps and not points:
        raise InputError("gaps and points: needs one or more of either, got none.")
    for gap in gaps:
        if not (math.isfinite(gap.mean) and 0 <= (gap.half or 0.0) < math.inf):
            raise InputError(f"gaps: must be finite, with an interval of 0 or more, got {gap!r}.")
    for point in points:
        ordered = 0 <= point.low <= point.value <= point.high <= 1
        if not (ordered and 0 < point.cost < math.inf):
            raise InputError(
                f"points: needs 0 <= low <= value <= high <= 1 and a cost above 0, got {point!r}."
            )
