"""Figures from arrays, as SVG text: the same arrays give the same bytes.

Matplotlib is imported when a figure is drawn and its global state stays as it was. Text stays
text, so that it can be read aloud, searched and copied.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from multirobust.analysis.placement import Rectangle, place_labels
from multirobust.errors import InputError

__all__ = ["per_norm_bars", "printable", "union_against_cost"]

# Okabe and Ito's palette, which people with any common color blindness can tell apart.
COLORS = {
    "clean": "#b8b8b8",
    "linf": "#0072b2",
    "l1": "#e69f00",
    "l2": "#009e73",
    "union": "#333333",
}
SPARE_COLORS = ("#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
LABELS = {"linf": "ℓ∞", "l1": "ℓ₁", "l2": "ℓ₂"}
INK, FAINT = "#222222", "#d9d9d9"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "multirobust",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 9.0,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH = 7.2


def per_norm_bars(
    names: Sequence[str],
    groups: Sequence[str],
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> str:
    """Draw one block of horizontal bars per defense: clean, under each threat, under the union.

    Args:
        names: Defenses, from top to bottom.
        groups: Keys of the bars in each block: "clean", threats, "union".
        values: Accuracies in [0, 1], shape (names, groups); NaN where not evaluated.
        low: Lower ends of their intervals, same shape.
        high: Upper ends, same shape.

    Returns:
        An SVG document.

    Raises:
        InputError: If shapes differ, there is nothing to draw, or a number is not in [0, 1].
    """
    _check((len(names), len(groups)), values=values, low=low, high=high)
    block = len(groups) + 1.2
    with _figure(0.17 * block * len(names) + 1.0) as (figure, svg):
        axes = figure.add_subplot()
        spare = iter(SPARE_COLORS * len(groups))
        for g, group in enumerate(groups):
            color = COLORS.get(group) or next(spare)
            label = LABELS.get(group, printable(group))
            rows = np.arange(len(names)) * block + g
            _draw_bars(axes, rows, values[:, g], low[:, g], high[:, g], color, label)
        axes.set_yticks(
            np.arange(len(names)) * block + (len(groups) - 1) / 2, [printable(n) for n in names]
        )
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 109), ylim=(len(names) * block - 1.2, -1.0), xlabel="Accuracy (%)")
        axes.set_xticks(range(0, 101, 20))
        axes.xaxis.grid(True, color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=min(6, len(groups)), frameon=False)
    return svg.getvalue()


def union_against_cost(
    names: Sequence[str],
    costs: np.ndarray,
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    cost_label: str = "Training time (seconds)",
) -> str:
    """Draw the accuracy under the union of attacks against what the training cost.

    Each point carries its name; labels avoid each other, the points and their whiskers. The cost
    axis is logarithmic where the costs span more than a factor of eight.

    Args:
        names: Defenses.
        costs: Positive costs, shape (names,), in the unit of the label.
        values: Union accuracies in [0, 1], shape (names,).
        low: Lower ends of their intervals.
        high: Upper ends.
        cost_label: Name and unit of the cost axis.

    Returns:
        An SVG document.

    Raises:
        InputError: If shapes differ, there is nothing to draw, or a number is out of its range.
    """
    _check((len(names),), values=values, low=low, high=high)
    if np.shape(costs) != (len(names),) or not (np.isfinite(costs) & (costs > 0)).all():
        raise InputError(f"costs: must be {len(names)} positive finite numbers, got {costs!r}.")
    with _figure(4.4) as (figure, svg):
        axes = figure.add_subplot()
        whiskers = 100 * np.stack([values - low, high - values])
        axes.errorbar(
            costs, 100 * values, whiskers, fmt="o", color=COLORS["linf"], ecolor="#8fb8d3",
            elinewidth=1.2, capsize=2, markersize=5.5,
        )  # fmt: skip
        _scale_costs(axes, costs)
        top = min(100.0, max(5.0, 108 * float(np.nanmax(high))))
        axes.set(
            xlabel=printable(cost_label),
            ylabel="Accuracy under the union of attacks (%)",
            ylim=(-0.03 * top, top),
        )
        axes.grid(True, color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        _label_points(figure, axes, [printable(n) for n in names], costs, values, low, high)
    return svg.getvalue()


def _draw_bars(
    axes: Any,
    rows: np.ndarray,
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    color: str,
    label: str,
) -> None:
    known = np.isfinite(values)
    axes.barh(rows, 100 * np.where(known, values, 0), height=0.86, color=color, label=label)
    axes.errorbar(
        100 * values[known], rows[known],
        xerr=100 * np.stack([values - low, high - values])[:, known],
        fmt="none", ecolor="#777777" if label == "union" else INK, elinewidth=0.9, capsize=1.6,
    )  # fmt: skip
    for row, value, end in zip(rows, values, high, strict=True):
        text, x = (f"{100 * value:.1f}", 100 * end) if np.isfinite(value) else ("not evaluated", 0)
        axes.text(x + 1.0, row, text, va="center_baseline", fontsize=7)


def _scale_costs(axes: Any, costs: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if costs.max() <= 8 * costs.min():
        axes.set_xlim(0, 1.15 * costs.max())
        return
    axes.set_xscale("log")
    axes.set_xlim(costs.min() / 1.6, costs.max() * 1.9)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label_points(
    figure: Any,
    axes: Any,
    names: Sequence[str],
    costs: np.ndarray,
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    figure.canvas.draw()
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    points = to_pixels.transform(np.column_stack([costs, 100 * values]))
    ends = [to_pixels.transform(np.column_stack([costs, 100 * end]))[:, 1] for end in (low, high)]
    obstacles: list[Rectangle] = [
        (float(x) - 4, float(min(bottom, y - 4)), float(x) + 4, float(max(top, y + 4)))
        for (x, y), bottom, top in zip(points, *ends, strict=True)
    ]
    texts = [axes.text(0, 0, name, fontsize=8.5, va="bottom", ha="left") for name in names]
    extents = [text.get_window_extent() for text in texts]
    for text in texts:
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    box = axes.get_window_extent()
    anchors = [(float(x), float(y)) for x, y in points]
    sizes = [(float(extent.width), float(extent.height)) for extent in extents]
    spots = place_labels(anchors, sizes, (box.x0, box.y0, box.x1, box.y1), obstacles)
    for text, anchor, spot in zip(texts, anchors, spots, strict=True):
        text.set_position(to_data.transform(spot[:2]))
        nearest = np.clip(anchor, spot[:2], spot[2:])
        if np.hypot(*(nearest - anchor)) > 12:
            line = to_data.transform([anchor, nearest])
            axes.plot(line[:, 0], line[:, 1], color="#888888", linewidth=0.6, zorder=1)


@contextlib.contextmanager
def _figure(height: float) -> Iterator[tuple[Any, io.StringIO]]:
    """Yield a figure to draw on and a stream that holds its SVG afterwards."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    svg = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context(STYLE):
        # A name in a script that the measuring font lacks is still shown: the reader has fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        yield figure, svg
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})


def _check(shape: tuple[int, ...], **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        inside = np.isnan(array) | ((array >= 0) & (array <= 1))
        if np.shape(array) != shape or 0 in shape or not np.all(inside):
            raise InputError(
                f"{name}: must be accuracies in [0, 1] of the shape {shape} (one per name), at "
                f"least one, got shape {np.shape(array)}: {array!r}."
            )


def printable(name: str) -> str:
    """Drop what XML cannot hold."""
    return "".join(c if c.isprintable() else " " for c in name)
