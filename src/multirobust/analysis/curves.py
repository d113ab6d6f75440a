"""The figure of robustness curves: one panel a norm, accuracy against radius, one line a model."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from multirobust.analysis.placement import Rectangle, place_labels
from multirobust.analysis.plots import FAINT, LABELS, STYLE, WIDTH, _printable
from multirobust.errors import InputError, lookup_error

__all__ = ["CurveLine", "CurvePanel", "curves_figure"]

# Okabe and Ito's palette without its yellow, which is too faint for a line.
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#333333", "#e69f00", "#56b4e9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
FORMATS = ("svg", "png")


@final
@dataclass(frozen=True)
class CurveLine:
    """The curve of one model in one norm, a step function.

    Args:
        name: Of the model.
        radius: Ascending, on the [0, 1] pixel scale, shape (m,).
        value: Accuracy in [0, 1] from each radius to the next, shape (m,).
        low: Lower ends of the intervals, shape (m,).
        high: Upper ends, shape (m,).
    """

    name: str
    radius: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        arrays = (self.radius, self.value, self.low, self.high)
        shares = np.concatenate([np.ravel(array) for array in arrays[1:]])
        shapes = {np.shape(array) for array in arrays}
        inside = np.all((shares >= 0) & (shares <= 1))
        if len(shapes) != 1 or np.ndim(self.radius) != 1 or not len(self.radius) or not inside:
            raise InputError(
                f"CurveLine {self.name!r}: needs radii and accuracies in [0, 1] of one shape (m,), "
                f"at least one, got shapes {[np.shape(array) for array in arrays]}."
            )
        if not np.all(np.diff(self.radius) > 0) or not np.isfinite(self.radius).all():
            raise InputError(f"CurveLine {self.name!r}: radius must be finite and ascend.")


@final
@dataclass(frozen=True)
class CurvePanel:
    """All curves of one norm.

    Args:
        norm: Its name, such as "linf".
        benchmark: The radius to mark, on the [0, 1] pixel scale, above 0.
        lines: One a model, at least one.
    """

    norm: str
    benchmark: float
    lines: tuple[CurveLine, ...]

    def __post_init__(self) -> None:
        if not self.lines or not self.benchmark > 0:
            raise InputError(
                f"CurvePanel {self.norm!r}: needs a benchmark radius above 0 and at least one "
                f"line, got {self.benchmark!r} and {len(self.lines)} lines."
            )


def curves_figure(
    panels: Sequence[CurvePanel], *, form: Literal["svg", "png"] | str = "svg"
) -> bytes:
    """Draw robustness curves side by side; the same arrays give the same bytes.

    A model has one color in all panels and its name beside its line, bands are the intervals, and
    a dotted line marks the benchmark radius. An linf radius that is a number of half gray levels
    of 255 is shown in units of 1/255.

    Args:
        panels: One a norm, at least one.
        form: Of the image file, "svg" or "png".

    Returns:
        The content of the file.

    Raises:
        InputError: If there is nothing to draw or the form is unknown.
    """
    if form not in FORMATS:
        raise lookup_error("form", form, FORMATS)
    if not panels:
        raise InputError("panels: needs at least one norm to draw, got none.")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    stream = io.BytesIO()
    with warnings.catch_warnings(), mpl.rc_context(STYLE):
        # A name in a script that the measuring font lacks is still shown: the reader has fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        width = max(3.6, WIDTH * len(panels) / 3)
        figure = Figure(figsize=(width, 2.9), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw_panel(axes, panel, names)
        all_axes[0].set_ylabel("Accuracy (%)")
        figure.canvas.draw()
        for axes, panel in zip(all_axes, panels, strict=True):
            _label_lines(axes, panel, names)
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(stream, format=form, dpi=200, metadata=metadata)
    return stream.getvalue()


def _draw_panel(axes: Any, panel: CurvePanel, names: Sequence[str]) -> None:
    scale, unit = _unit(panel)
    end = max(float(line.radius[-1]) for line in panel.lines) * scale
    for line in panel.lines:
        color, dash = _look(names.index(line.name))
        x = np.append(line.radius * scale, end)
        low, value, high = (100 * np.append(y, y[-1]) for y in (line.low, line.value, line.high))
        axes.fill_between(x, low, high, step="post", color=color, alpha=0.16, linewidth=0)
        axes.step(x, value, where="post", color=color, linestyle=dash, linewidth=1.4)
    mark = panel.benchmark * scale
    axes.axvline(mark, color="#777777", linewidth=0.9, linestyle=":", zorder=1)
    axes.annotate(
        f"{mark:.4g}", (mark, 1.0), (0, 2), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="center", va="bottom", fontsize=7.5, color="#555555",
    )  # fmt: skip
    label = LABELS.get(panel.norm, _printable(panel.norm))
    axes.set(xlim=(0, end or 1), ylim=(0, 102), xlabel=f"{label} radius{unit}")
    axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _label_lines(axes: Any, panel: CurvePanel, names: Sequence[str]) -> None:
    """Write each name near its line, where the line is farthest from the others."""
    scale, _ = _unit(panel)
    end = max(float(line.radius[-1]) for line in panel.lines)
    grid = np.linspace(0, end, 121)
    values = 100 * np.stack([_at(line, grid) for line in panel.lines])
    to_pixels = axes.transData
    obstacles: list[Rectangle] = []
    for row in values:
        pixels = to_pixels.transform(np.column_stack([grid * scale, row]))
        obstacles += _boxes(pixels)
    texts = [
        axes.text(
            0, 0, _printable(line.name), fontsize=8, va="bottom", ha="left",
            color=_look(names.index(line.name))[0],
        )
        for line in panel.lines
    ]  # fmt: skip
    extents = [text.get_window_extent() for text in texts]
    anchors = []
    for i in range(len(values)):
        k = _clearest(values, i)
        x, y = to_pixels.transform((grid[k] * scale, values[i, k]))
        anchors.append((float(x), float(y)))
    box = axes.get_window_extent()
    sizes = [(float(extent.width), float(extent.height)) for extent in extents]
    spots = place_labels(anchors, sizes, (box.x0, box.y0, box.x1, box.y1), obstacles)
    for text, anchor, spot in zip(texts, anchors, spots, strict=True):
        text.set_position(to_pixels.inverted().transform(spot[:2]))
        nearest = np.clip(anchor, spot[:2], spot[2:])
        if np.hypot(*(nearest - anchor)) > 16:
            leader = to_pixels.inverted().transform([anchor, nearest])
            axes.plot(leader[:, 0], leader[:, 1], color=text.get_color(), linewidth=0.6)


def _boxes(pixels: np.ndarray) -> list[Rectangle]:
    """Return rectangles that cover a line through these points, shape (m, 2)."""
    low = np.minimum(pixels[:-1], pixels[1:]) - 1
    high = np.maximum(pixels[:-1], pixels[1:]) + 1
    return [tuple(map(float, row)) for row in np.hstack([low, high])]  # type: ignore[misc]


def _clearest(values: np.ndarray, i: int) -> int:
    """Return where line i is farthest from all others and from the ends of the axis."""
    others = np.delete(values, i, axis=0)
    gaps = np.abs(others - values[i]).min(axis=0) if len(others) else np.full(values.shape[1], 50.0)
    room = np.minimum(values[i], 100 - values[i])
    return int(np.argmax(np.minimum(gaps, np.maximum(room, 0.1))))


def _at(line: CurveLine, radii: np.ndarray) -> np.ndarray:
    """Return the step function of a line at these radii."""
    return line.value[np.searchsorted(line.radius, radii, side="right").clip(min=1) - 1]


def _unit(panel: CurvePanel) -> tuple[float, str]:
    """Return what a radius is multiplied by, and the unit that it then has, for the axis."""
    halves = panel.benchmark * 510
    if panel.norm == "linf" and abs(halves - round(halves)) < 1e-6 and halves < 255:
        return 255.0, " (1/255)"
    return 1.0, ""


def _look(i: int) -> tuple[str, Any]:
    return LINE_COLORS[i % len(LINE_COLORS)], DASHES[i // len(LINE_COLORS) % len(DASHES)]
