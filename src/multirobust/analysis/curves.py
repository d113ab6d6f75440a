"""The figure of robustness curves: one panel a norm, accuracy against radius, one line a model."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from multirobust.analysis.plots import FAINT, LABELS, STYLE, WIDTH, printable
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

    A model has one color in all panels. Its name stands in the upper right corner with its accuracy
    at the benchmark radius, which a dotted line marks; the best comes first. Bands are the
    intervals. An linf benchmark that is a number of half gray levels of 255 puts the axis in units
    of 1/255.

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
            _label_lines(axes, panel, names)
        all_axes[0].set_ylabel("Accuracy (%)")
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
    label = LABELS.get(panel.norm, printable(panel.norm))
    axes.set(xlim=(0, end or 1), ylim=(0, 102), xlabel=f"{label} radius{unit}")
    axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _label_lines(axes: Any, panel: CurvePanel, names: Sequence[str]) -> None:
    """List the names in the free upper right corner, by their accuracy at the benchmark radius."""
    scale, unit = _unit(panel)
    rows = [(f"at {panel.benchmark * scale:.4g}{unit and '/255'}", "#555555")]
    for line in sorted(panel.lines, key=lambda line: -_at(line, panel.benchmark)):
        color, _ = _look(names.index(line.name))
        share = _at(line, panel.benchmark)
        number = f"{100 * share:.1f}" if panel.benchmark <= line.radius[-1] else "not attacked"
        rows.append((f"{printable(line.name)} {number}", color))
    for i, (text, color) in enumerate(rows):
        axes.annotate(
            text, (1, 1), (-2, -2 - 10.5 * i), xycoords="axes fraction",
            textcoords="offset points", ha="right", va="top", fontsize=8, color=color,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
        )  # fmt: skip


def _at(line: CurveLine, radius: float) -> float:
    """Return the step function of a line at a radius."""
    return float(line.value[max(0, int(np.searchsorted(line.radius, radius, side="right")) - 1)])


def _unit(panel: CurvePanel) -> tuple[float, str]:
    """Return what a radius is multiplied by, and the unit that it then has, for the axis."""
    halves = panel.benchmark * 510
    if panel.norm == "linf" and abs(halves - round(halves)) < 1e-6 and halves < 255:
        return 255.0, " (1/255)"
    return 1.0, ""


def _look(i: int) -> tuple[str, Any]:
    return LINE_COLORS[i % len(LINE_COLORS)], DASHES[i // len(LINE_COLORS) % len(DASHES)]
