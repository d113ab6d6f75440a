"""The arrays behind the report's figures, and the figures with their captions.

How to draw is passed in as functions: this module says what to draw and how to read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import numpy as np

from multirobust.evaluation.intervals import mean_and_std
from multirobust.report.tables import (
    Cell,
    Column,
    Row,
    RunResult,
    Table,
    estimate,
    grouped,
    threats_of,
)

__all__ = [
    "Bars",
    "Figure",
    "Points",
    "Section",
    "bar_arrays",
    "cost_arrays",
    "number_table",
    "standard_figures",
]


@final
@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Args:
        title: What it shows.
        caption: How to read it.
        svg: The drawing, a whole SVG document.
        table: The numbers that it shows, for those who read rather than look.
    """

    title: str
    caption: str
    svg: str
    table: Table | None = None


@final
@dataclass(frozen=True)
class Section:
    """A part of the page: its title, what it is about, and its figures.

    Args:
        title: Unique on the page.
        text: A sentence or two under the title; may be empty.
        figures: At least one, or none where the text says all.
    """

    title: str
    text: str
    figures: tuple[Figure, ...]


class Bars(NamedTuple):
    """Accuracies in [0, 1] of shape (names, groups), with their ends; NaN where not evaluated."""

    names: list[str]
    groups: list[str]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Points(NamedTuple):
    """Costs and union accuracies, shape (names,); the label holds the unit of the cost."""

    names: list[str]
    costs: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cost_label: str


def bar_arrays(results: Sequence[RunResult]) -> Bars:
    """Return the accuracy of every defense when clean, under each threat, and under the union.

    One seed has the ends of its Wilson interval, several have mean ± standard deviation; errors
    widen both by the range they leave.
    """
    groups = grouped(results)
    threats = threats_of(results)
    keys = ["clean", *threats, *(["union"] if threats else [])]
    table = np.array([[_summary(runs, key) for key in keys] for runs in groups.values()])
    return Bars(list(groups), keys, table[..., 0], table[..., 1], table[..., 2])


def cost_arrays(results: Sequence[RunResult], cost: Literal["seconds", "passes"]) -> Points | None:
    """Return the union accuracy of every defense against its training cost.

    Args:
        results: The runs; those of unknown cost or without attacks are left out.
        cost: Wall time, or forward plus backward passes of one image.

    Returns:
        The points, or None if no run has both numbers.
    """
    measured = [r for r in results if r.outcomes.threats and _cost(r, cost) > 0]
    if not measured:
        return None
    groups = grouped(measured)
    costs = np.array([mean_and_std([_cost(r, cost) for r in runs])[0] for runs in groups.values()])
    table = np.array([_summary(runs, "union") for runs in groups.values()])
    size, label = _unit(float(costs.max()), cost)
    return Points(list(groups), costs / size, table[:, 0], table[:, 1], table[:, 2], label)


def standard_figures(
    results: Sequence[RunResult], draw_bars: Callable[..., str], draw_costs: Callable[..., str]
) -> list[Figure]:
    """Draw the report's standard figures.

    Args:
        results: The runs to show.
        draw_bars: Takes the fields of `Bars`, returns SVG (`analysis.per_norm_bars`).
        draw_costs: Takes the fields of `Points`, returns SVG (`analysis.union_against_cost`).
    """
    doubt, bars = _doubt(grouped(results)), bar_arrays(results)
    title = "Accuracy under each threat"
    caption = f"Bars: share of images classified correctly, clean and under attack. {doubt}"
    table = number_table(bars.names, bars.groups, bars.values, bars.low, bars.high)
    drawn = [Figure(title, caption, draw_bars(*bars), table)]
    said = {
        "seconds": "Up and to the left is better. Wall time compares only on one device.",
        "passes": "The same accuracies against a cost that does not depend on the device.",
    }
    for cost, text in said.items():
        points = cost_arrays(results, cost)  # type: ignore[arg-type]
        if points is not None:
            title = "Union accuracy against training " + ("time" if cost == "seconds" else "passes")
            drawn.append(Figure(title, f"{text} {doubt}", draw_costs(*points), _cost_table(points)))
    return drawn


def number_table(
    names: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    *,
    corner: str = "defense",
) -> Table:
    """Return the table of a figure: accuracies in percent with their ends.

    Args:
        names: Of the rows.
        columns: Of the columns.
        values: In [0, 1], shape (names, columns); NaN where there is none.
        low: Lower ends, same shape; None leaves out the ends.
        high: Upper ends, same shape.
        corner: What the rows are.
    """
    ends = (values if low is None else low, values if high is None else high)
    rows = []
    for name, *arrays in zip(names, values, *ends, strict=True):
        triples = zip(*arrays, strict=True)
        rows.append(Row(name, tuple(_share(v, a, b, low is not None) for v, a, b in triples)))
    return Table(tuple(Column(c, c) for c in columns), tuple(rows), (), corner)


def _share(value: float, low: float, high: float, ends: bool = True) -> Cell:
    if math.isnan(value):
        return Cell("–")
    detail = f"[{100 * low:.1f}, {100 * high:.1f}]" if ends else ""
    return Cell(f"{100 * value:.1f}", detail, 100 * float(value))


def _cost_table(points: Points) -> Table:
    rows = []
    ends = zip(points.values, points.low, points.high, strict=True)
    for name, cost, (value, low, high) in zip(points.names, points.costs, ends, strict=True):
        cost_cell = Cell(f"{cost:.3g}", value=float(cost))
        rows.append(Row(name, (cost_cell, _share(value, low, high))))
    columns = (Column("cost", points.cost_label, lower_is_better=True), Column("union", "union"))
    return Table(columns, tuple(rows))


def _summary(runs: Sequence[RunResult], key: str) -> tuple[float, float, float]:
    views = [view for run in runs if (view := estimate(run.outcomes, key)) is not None]
    if not views:
        return math.nan, math.nan, math.nan
    if len(views) == 1:
        return views[0].value, views[0].low, views[0].high
    mean, low_std = mean_and_std([view.range_low for view in views])
    top, high_std = mean_and_std([view.range_high for view in views])
    assert low_std is not None
    assert high_std is not None
    return mean, max(0.0, mean - low_std), min(1.0, top + high_std)


def _cost(result: RunResult, cost: str) -> float:
    if cost == "seconds":
        known = result.training_seconds
    elif result.forwards is None or result.backwards is None:
        known = None
    else:
        known = result.forwards + result.backwards
    return known if known is not None and math.isfinite(known) else 0.0


def _unit(largest: float, cost: str) -> tuple[float, str]:
    if cost == "passes":
        size, word = next(
            ((s, w) for s, w in ((1e9, "billion "), (1e6, "million ")) if largest >= s), (1.0, "")
        )
        return size, f"Training cost ({word}forward and backward passes of one image)"
    size, unit = (3600.0, "hours") if largest >= 7200 else (60.0, "minutes")
    return (size, f"Training time ({unit})") if largest >= 120 else (1.0, "Training time (seconds)")


def _doubt(groups: dict[str, list[RunResult]]) -> str:
    sizes = {len(runs) for runs in groups.values()}
    one = "the 95 % Wilson interval over the images"
    several = "one standard deviation over the seeds"
    if sizes == {1}:
        return f"Whiskers: {one}."
    return f"Whiskers: {several}{f', or with one seed {one}' if 1 in sizes else ''}."
