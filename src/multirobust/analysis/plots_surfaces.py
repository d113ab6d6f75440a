"""The drawing of loss surfaces: one panel a norm and defense, equal colors for equal losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from multirobust.analysis.canvas import sheet
from multirobust.analysis.plots import LABELS, WIDTH, printable
from multirobust.analysis.surfaces import Surface
from multirobust.errors import InputError

__all__ = ["loss_surfaces"]

COLORS = "viridis"
"""A map of rising lightness, the same to readers with any common color blindness."""

STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
MOST_LEVELS, LEAST_LEVEL = 12, 0.01


def loss_surfaces(
    rows: Sequence[str], columns: Sequence[str], surfaces: Sequence[Sequence[Surface]]
) -> str:
    """Draw loss surfaces from above: attacks as rows, defenses as columns.

    Each row has one scale of colors, whose steps are about equal ratios. A cross marks the images
    themselves. Under each panel stand the mean loss there and the greatest on the plane.
    Losses below 0.01 nats have one color.

    Args:
        rows: Names of the norms, from top to bottom.
        columns: Names of the defenses, from left to right.
        surfaces: One list a row, with one surface a column.

    Returns:
        An SVG document.

    Raises:
        InputError: If there is nothing to draw, or not one surface for each name.
    """
    if not rows or not columns or [len(line) for line in surfaces] != [len(columns)] * len(rows):
        raise InputError(
            f"surfaces: needs {len(rows)} rows of {len(columns)} surfaces, at least one of each, "
            f"got {[len(line) for line in surfaces]}."
        )
    height = 0.55 + len(rows) * max(1.45, min(2.4, 0.2 + (WIDTH - 1.2) / len(columns)))
    width = max(3.6, min(WIDTH, 1.4 + 2.2 * len(columns)))
    width = max(width, 1.2 + 1.15 * len(columns))
    title = f"Loss surfaces of {', '.join(columns)} under {', '.join(rows)}"
    with sheet(width, height, title=title, description=_words(rows, columns, surfaces)) as page:
        grid = page.figure.subplots(len(rows), len(columns), squeeze=False)
        for axes, norm, line in zip(grid, rows, surfaces, strict=True):
            _draw_row(page.figure, axes, line)
            axes[0].set_ylabel(f"{LABELS.get(norm, printable(norm))}\nsecond direction")
        for axes, name in zip(grid[0], columns, strict=True):
            axes.set_title(printable(name), fontsize=9)
        page.figure.supxlabel("steepest direction (radii)", fontsize=9)
    return page.svg


def _draw_row(figure: Any, panels: Sequence[Any], surfaces: Sequence[Surface]) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm

    levels = _levels(surfaces)
    scale = BoundaryNorm(levels, colormaps[COLORS].N)
    filled = None
    for axes, surface in zip(panels, surfaces, strict=True):
        loss = np.clip(surface.loss, levels[0], levels[-1])
        place = (surface.axis, surface.axis, loss)
        filled = axes.contourf(*place, levels=levels, norm=scale, cmap=COLORS)
        axes.contour(*place, levels=levels[1:-1], colors="white", linewidths=0.35)
        axes.plot(0, 0, marker="+", color="white", markersize=7, markeredgewidth=2.2)
        axes.plot(0, 0, marker="+", color="#222222", markersize=6, markeredgewidth=0.9)
        axes.set_aspect("equal")
        end = float(surface.axis[-1])
        axes.set_xticks([-end, 0, end], [f"{-end:g}", "0", f"{end:g}"], fontsize=7)
        axes.set_yticks([-end, 0, end], [f"{-end:g}", "0", f"{end:g}"], fontsize=7)
        axes.tick_params(length=2, pad=1.5)
        numbers = f"+ {_short(surface.center)}, most {_short(surface.greatest)}"
        axes.set_xlabel(numbers, fontsize=7.5)
    bar = figure.colorbar(filled, ax=list(panels), ticks=levels, shrink=0.9, pad=0.015, aspect=14)
    bar.ax.set_yticklabels([f"{level:g}" for level in levels], fontsize=7)
    bar.ax.tick_params(length=0)
    bar.set_label("loss (nats)", fontsize=8)


def _levels(surfaces: Sequence[Surface]) -> list[float]:
    """Return round limits of the colors, about equal ratios, that hold all losses of a row."""
    least = max(LEAST_LEVEL, min(float(surface.loss.min()) for surface in surfaces))
    most = max(LEAST_LEVEL * 10, *(surface.greatest for surface in surfaces))
    powers = range(math.floor(math.log10(least)), math.floor(math.log10(most)) + 2)
    for steps in (STEPS, (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        rounds = [step * 10.0**power for power in powers for step in steps]
        below = max(i for i, level in enumerate(rounds) if level <= least * (1 + 1e-9))
        above = min(i for i, level in enumerate(rounds) if level >= most * (1 - 1e-9))
        levels = rounds[below : max(above, below + 1) + 1]
        if len(levels) <= MOST_LEVELS:
            break
    return levels


def _words(
    rows: Sequence[str], columns: Sequence[str], surfaces: Sequence[Sequence[Surface]]
) -> str:
    said = [
        f"{name} under {norm}: {_short(surface.center)} at the images, "
        f"{_short(surface.greatest)} at most, roughness {_short(surface.roughness)}."
        for norm, line in zip(rows, surfaces, strict=True)
        for name, surface in zip(columns, line, strict=True)
    ]
    return "Mean loss in nats on a plane through the images. " + " ".join(said)


def _short(number: float) -> str:
    """Return two significant digits without an exponent."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    return f"{number:.{max(0, 1 - math.floor(math.log10(abs(number))))}f}"
