"""The part of the report on accuracy against radius, from the curves that the runs keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from multirobust.analysis import CurveLine, CurvePanel, curves_figure
from multirobust.errors import DataError
from multirobust.evaluation import Curves, Estimate, load_curves
from multirobust.evaluation.storage import MANIFEST
from multirobust.experiment.building import weights_digest
from multirobust.experiment.runs import Run
from multirobust.report import Cell, Column, Figure, Row, Section, Table

__all__ = ["curve_panels", "robustness_section", "stored_curves"]

SHARES = (0.0, 0.5, 1.0, 2.0)
"""Of the benchmark radius, the columns of the table."""


def robustness_section(runs: Sequence[Run]) -> Section | None:
    """Return the part on robustness curves, or None where no run keeps any.

    Args:
        runs: Runs that have been trained; of a defense the first seed that has curves counts.
    """
    found = stored_curves(runs)
    if not found:
        return None
    first = next(iter(found.values()))
    missing = sorted({run.defense for run in runs} - {*found})
    text = (
        f"Accuracy on {len(first):,} images at every radius, as the command curve found it: an "
        "upper bound, tightest at the radii that were attacked. One seed a defense."
    )
    if missing:
        text += f" No curves with the same settings: {', '.join(missing)}."
    caption = (
        "Bands: 95 % Wilson intervals over the images, point by point. The dotted line marks the "
        "benchmark radius, with the accuracies there in the upper right corner."
    )
    svg = curves_figure(curve_panels(found), form="svg").decode()
    figure = Figure("Accuracy against radius", caption, svg, _table(found))
    return Section("Robustness curves", text, (figure,))


def stored_curves(runs: Sequence[Run]) -> dict[str, Curves]:
    """Return the curves that runs keep, by defense, all made with the same settings.

    Of several settings the one that most defenses share counts, then the one with most images.
    Curves of other weights than the run has now, and damaged ones, count as missing.
    """
    kept: dict[str, dict[str, Curves]] = {}
    for run in runs:
        for name, curves in _kept_by(run).items():
            kept.setdefault(run.defense, {}).setdefault(name, curves)
    shared = Counter(name for curves in kept.values() for name in curves)
    if not shared:
        return {}
    sizes = {name: len(curves) for found in kept.values() for name, curves in found.items()}
    chosen = max(shared, key=lambda name: (shared[name], sizes[name], name))
    return {defense: found[chosen] for defense, found in kept.items() if chosen in found}


def curve_panels(found: Mapping[str, Curves]) -> list[CurvePanel]:
    """Return what `analysis.curves_figure` draws: a panel a norm, a line a model."""
    panels = []
    for norm in dict.fromkeys(norm for curves in found.values() for norm in curves.norms):
        having = {name: curves for name, curves in found.items() if norm in curves.norms}
        lines = tuple(CurveLine(name, *curves.points(norm)) for name, curves in having.items())
        panels.append(CurvePanel(norm, next(iter(having.values())).benchmark(norm), lines))
    return panels


def _kept_by(run: Run) -> dict[str, Curves]:
    """Return the curves of a run's present weights, by the name of their settings."""
    markers = sorted((run.folder / "evaluation" / "curves").glob(f"*/{MANIFEST}"))
    found = {}
    for folder in (marker.parent for marker in markers):
        try:
            curves = load_curves(folder)
        except DataError:
            continue
        if curves.manifest.get("weights") == weights_digest(run):
            found[folder.name] = curves
    return found


def _table(found: Mapping[str, Curves]) -> Table:
    first = next(iter(found.values()))
    places = [(norm, first.benchmark(norm) * share) for norm in first.norms for share in SHARES[1:]]
    columns = [Column("clean", "clean")]
    columns += [Column(f"{norm}@{r:.4g}", f"{norm} {r:.4g}") for norm, r in places]
    rows = []
    for name, curves in found.items():
        shown = [curves.clean()]
        shown += [curves.accuracy(norm, radius) for norm, radius in places]
        rows.append(Row(name, tuple(map(_cell, shown))))
    note = "Accuracy in percent at half, one and two benchmark radii; [95 % interval]."
    return Table(tuple(columns), tuple(rows), (note,))


def _cell(estimate: Estimate) -> Cell:
    number, _, detail = str(estimate).partition(" ")
    return Cell(number, detail, 100 * estimate.value)
