"""The part of the report on how the trainings went, from the metrics that the runs keep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from multirobust.analysis.trends import metric_series, training_curves
from multirobust.experiment.runs import Run
from multirobust.report import Cell, Column, Figure, Row, Section, Table

__all__ = ["history_of", "training_section"]

METRICS = "metrics.jsonl"

Series: TypeAlias = dict[str, list[tuple[float, float]]]
"""Of each term of the metrics, its points (step, value)."""


def training_section(runs: Sequence[Run]) -> Section | None:
    """Return the part on the trainings, or None where no run keeps its metrics.

    Args:
        runs: One for each defense.
    """
    found = {run.defense: series for run in runs if (series := history_of(run))}
    if not found:
        return None
    text = "Means over each epoch; of several seeds the first."
    if any(term.startswith("held_out") for series in found.values() for term in series):
        text += " Held out: accuracies on training images that the training never sees."
    caption = (
        "Loss terms of different defenses are taken on different images, clean, attacked or with "
        "learned noise, so that their heights do not compare."
    )
    figure = Figure("Training curves", caption, training_curves(found), _table(found))
    return Section("Training", text, (figure,))


def history_of(run: Run) -> Series:
    """Return what a run wrote down while it trained, a point an epoch; nothing if it is damaged."""
    try:
        lines = (run.folder / METRICS).read_text("utf-8").splitlines()
        rows = [_finite(json.loads(line)) for line in lines]
        return {term: points for term, points in metric_series(rows).items() if points}
    except Exception:  # a foreign file can break the reader in any way
        return {}


def _finite(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line that can be drawn."""
    return {term: float(value) for term, value in row.items() if math.isfinite(value)}


def _table(found: Mapping[str, Series]) -> Table:
    terms = list(
        dict.fromkeys(term for series in found.values() for term in series if term != "lr")
    )
    rows = []
    for name, series in found.items():
        last = [series[term][-1][1] if term in series else None for term in terms]
        cells = (Cell("–") if v is None else Cell(f"{v:.3g}", value=v) for v in last)
        rows.append(Row(name, tuple(cells)))
    columns = tuple(Column(term, term.replace("_", " ")) for term in terms)
    return Table(columns, tuple(rows), ("Means over the last epoch.",))
