"""Figures 2 and 4 and the training curves: numbers against a setting, and against the step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from multirobust.analysis.canvas import sheet
from multirobust.analysis.curves import DASHES, LINE_COLORS
from multirobust.analysis.plots import COLORS, FAINT, LABELS, WIDTH, printable
from multirobust.errors import InputError, lookup_error
from multirobust.evaluation.intervals import student_half, wilson

__all__ = ["accuracy_against", "metric_series", "seed_interval", "training_curves"]

TERMS = {"lr": "learning rate", "loss": "total loss", "cross_entropy": "cross-entropy"}
PASSES = ("step", "epoch", "forwards", "backwards")
SCALES = ("categorical", "linear", "log")


def seed_interval(shares: Sequence[float], images: int) -> tuple[float, float, float]:
    """Return the mean of an accuracy over seeds and the ends of its 95 % interval, within [0, 1].

    With several seeds Student's t interval of the mean, which is how far another set of seeds may
    end; with one seed its Wilson interval, which is how far another set of images may.

    Args:
        shares: The accuracy in [0, 1] of each seed.
        images: Number of images of one evaluation.

    Raises:
        InputError: If there is no seed, a share is not in [0, 1], or there is no image.
    """
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise InputError(f"shares must be accuracies in [0, 1], one a seed, got {shares!r}.")
    mean = math.fsum(shares) / len(shares)
    if len(shares) == 1:
        return mean, *wilson(mean, images)
    half = student_half(shares) or 0.0
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def accuracy_against(
    values: Sequence[float],
    names: Sequence[str],
    accuracies: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    label: str = "β",
    scale: Literal["categorical", "linear", "log"] | str = "categorical",
) -> str:
    """Draw accuracies against a setting, one panel each: the union beside the clean one.

    Each panel has its own range of accuracies, since the changes are small beside the numbers.

    Args:
        values: Of the setting, ascending, shape (v,); above 0 on a log scale.
        names: Keys of the panels, such as "union" and "clean".
        accuracies: In [0, 1], shape (names, v); NaN where not evaluated.
        low: Lower ends of their intervals, same shape.
        high: Upper ends.
        label: Name of the setting.
        scale: Of the horizontal axis; "categorical" puts the values at equal distances.

    Returns:
        An SVG document.

    Raises:
        InputError: If shapes differ, values do not ascend, or a number is out of its range.
    """
    _check_trend(values, names, scale, accuracies=accuracies, low=low, high=high)
    x = np.arange(len(values)) if scale == "categorical" else np.asarray(values, dtype=float)
    said = [
        f"{name} at {label} {value:g}: {100 * share:.1f} % [{100 * a:.1f}, {100 * b:.1f}]."
        for name, *row in zip(names, accuracies, low, high, strict=True)
        for value, share, a, b in zip(values, *row, strict=True)
        if np.isfinite(share)
    ]
    title = f"Accuracy against {printable(label)}: {', '.join(names)}"
    width = min(WIDTH, 0.4 + 3.4 * len(names))
    with sheet(width, 2.7, title=title, description=" ".join(said)) as page:
        panels = page.figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name, *row in zip(panels, names, accuracies, low, high, strict=True):
            share, a, b = (100 * np.asarray(part) for part in row)
            color = COLORS["linf"] if name == "clean" else COLORS.get(name, LINE_COLORS[1])
            axes.errorbar(
                x, share, np.stack([share - a, b - share]), fmt="o-", color=color, markersize=4.5,
                linewidth=1.4, elinewidth=1.0, capsize=2.5,
            )  # fmt: skip
            axes.set_title(f"{LABELS.get(name, printable(name))}", fontsize=9)
            if scale == "log":
                axes.set_xscale("log")
            axes.set_xticks(x, [f"{value:g}" for value in values], minor=False)
            axes.set_xticks([], minor=True)
            axes.set_xlabel(printable(label))
            axes.margins(x=0.08, y=0.12)
            axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
            axes.set_axisbelow(True)
        panels[0].set_ylabel("Accuracy (%)")
    return page.svg


def metric_series(
    rows: Iterable[Mapping[str, float]], *, by: Literal["epoch", "row"] | str = "epoch"
) -> dict[str, list[tuple[float, float]]]:
    """Return (step, value) of each term from the lines of a run's `metrics.jsonl`.

    A line holds the means since the line before. By epoch, those of one epoch are averaged, each
    with its number of steps as weight, and stand at the last step; the learning rate is the last.

    Args:
        rows: The lines, read as JSON, in order; each has "step" and, by epoch, "epoch".
        by: One point an epoch, or one a row.

    Raises:
        InputError: If by is unknown, or a row has no step.
    """
    if by not in ("epoch", "row"):
        raise lookup_error("by", by, ("epoch", "row"))
    found: dict[str, dict[float, list[tuple[float, float, float]]]] = {}
    before = 0.0
    for row in rows:
        if "step" not in row or by not in {*row, "row"}:
            raise InputError(f"rows: each needs step and epoch, got {sorted(row)}.")
        step, group = row["step"], row["step"] if by == "row" else row["epoch"]
        for term, value in row.items():
            if term not in PASSES:
                place = found.setdefault(term, {}).setdefault(group, [])
                place.append((step, step - before, value))
        before = step
    return {
        term: [(parts[-1][0], _mean(term, parts)) for parts in groups.values()]
        for term, groups in found.items()
    }


def training_curves(
    series: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, x_label: str = "Step"
) -> str:
    """Draw the terms of the loss and the learning rate against the step, one panel a term.

    Args:
        series: Of each run, by term, its points (step, value); see `metric_series`. A run without a
            term is absent from that panel.
        x_label: Of the horizontal axes.

    Returns:
        An SVG document.

    Raises:
        InputError: If there is no point.
    """
    terms = list(dict.fromkeys(term for run in series.values() for term in run))
    terms = sorted(terms, key=lambda term: (term == "lr", term != "loss"))
    if not any(points for run in series.values() for points in run.values()):
        raise InputError("series: needs one run or more with one point or more, got none.")
    columns = min(3, len(terms))
    lines = math.ceil(len(terms) / columns)
    said = [
        f"{name}, {term}: {points[0][1]:.3g} at step {points[0][0]:g}, {points[-1][1]:.3g} at "
        f"step {points[-1][0]:g}."
        for name, run in series.items()
        for term, points in run.items()
        if points
    ]
    legend = math.ceil(len(series) / 5)
    title = f"Training curves of {', '.join(series)}"
    size = (max(3.6, WIDTH * columns / 3), 1.95 * lines + 0.22 * legend + 0.15)
    with sheet(*size, title=title, description=" ".join(said)) as page:
        panels = page.figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, term in zip(panels, terms, strict=False):
            _draw_term(axes, term, series)
            axes.set_xlabel(printable(x_label), fontsize=8)
        for axes in panels[len(terms) :]:
            axes.set_visible(False)
        handles = [_line(index, printable(name)) for index, name in enumerate(series)]
        page.figure.legend(
            handles=handles, loc="outside lower center", ncols=min(5, 2 * columns), frameon=False,
            fontsize=8,
        )  # fmt: skip
    return page.svg


def _draw_term(axes: Any, term: str, series: Mapping[str, Mapping[str, Any]]) -> None:
    for index, run in enumerate(series.values()):
        points = np.asarray(run.get(term) or np.empty((0, 2)), dtype=float)
        drawn = _line(index)
        axes.plot(
            points[:, 0], points[:, 1], color=drawn.get_color(), linestyle=drawn.get_linestyle(),
            linewidth=1.2, marker="o" if len(points) == 1 else None, markersize=4,
        )  # fmt: skip
    axes.set_title(TERMS.get(term, printable(term).replace("_", " ")), fontsize=9)
    if all(value >= 0 for run in series.values() for _, value in run.get(term, ())):
        axes.set_ylim(bottom=0.0)
    axes.tick_params(labelsize=7.5)
    axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _line(index: int, label: str | None = None) -> Any:
    from matplotlib.lines import Line2D

    color = LINE_COLORS[index % len(LINE_COLORS)]
    dash = DASHES[index // len(LINE_COLORS) % len(DASHES)]
    return Line2D([], [], color=color, linestyle=dash, linewidth=1.4, label=label)


def _mean(term: str, parts: Sequence[tuple[float, float, float]]) -> float:
    if term == "lr" or len(parts) == 1:
        return parts[-1][2]
    return math.fsum(n * value for _, n, value in parts) / math.fsum(n for _, n, _ in parts)


def _check_trend(
    values: Sequence[float], names: Sequence[str], scale: str, **arrays: np.ndarray
) -> None:
    if scale not in SCALES:
        raise lookup_error("scale", scale, SCALES)
    rising = all(a < b for a, b in itertools.pairwise(values))
    if not rising or (scale == "log" and values and not values[0] > 0):
        raise InputError(f"values must ascend, and on a log scale from above 0, got {values!r}.")
    for name, array in arrays.items():
        inside = np.isnan(array) | ((array >= 0) & (array <= 1))
        if (
            not values
            or not names
            or np.shape(array) != (len(names), len(values))
            or not inside.all()
        ):
            raise InputError(
                f"{name}: must be accuracies in [0, 1] of shape {(len(names), len(values))}, at "
                f"least one, got shape {np.shape(array)}: {array!r}."
            )
