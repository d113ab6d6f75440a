"""Ways to train that cost the same number of passes: who ends with the greatest union."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from multirobust.analysis import CostPoint, Gap, gaps_and_costs, seed_interval
from multirobust.errors import InputError
from multirobust.evaluation import Difference, difference_by_seed, mean_and_std
from multirobust.experiment import Run
from multirobust.recipes.products import Product
from multirobust.recipes.reproduction import Reproduction, RowOf
from multirobust.recipes.study import Study
from multirobust.report import Cell, Column, Row, RunResult, Table, comparison
from multirobust.report.tables import grouped

__all__ = ["asked", "planned", "ranked"]


def planned(study: Study) -> dict[str, tuple[RowOf, list[Run]]]:
    """Return all rows of a study by name, chosen or not, with their runs, trained or not.

    Raises:
        InputError: If it is not known how many passes the rows have at this scale.
    """
    made, scale = study.reproduction, study.scale
    passes = study.passes or made.passes.get(scale.name) or made.passes.get(scale.data)
    if passes is None:
        raise InputError(
            f"--passes: {made.name} has no number of passes for {scale.name}, got none; give one."
        )
    ends = {"passes": [f"training.passes={passes:g}"], "epochs": []}
    return {row.name: (row, study.runs(row, ends[row.length])) for row in made.rows}


def asked(study: Study) -> list[str]:
    """Return the names of the rows to train and attack: the chosen ones, and the reference."""
    chosen = {study.reproduction.reference, *(row.name for row in study.rows)}
    return [row.name for row in study.reproduction.rows if row.name in chosen]


def ranked(reproduction: Reproduction, results: Sequence[RunResult]) -> Product:
    """Return the table of all rows by family and union, and the figure.

    Args:
        reproduction: Of the kind "at_equal_passes".
        results: Of its rows, not all of which need to be there, nor with the same seeds.

    Raises:
        InputError: If the reference is not among them.
    """
    groups = grouped(results)
    if reproduction.reference not in groups:
        raise InputError(
            f"{reproduction.name}: its rows are compared with {reproduction.reference!r}, of which "
            "there is no result; add it."
        )
    of = {row.name: row for row in reproduction.rows}
    unions = {name: _unions(runs) for name, runs in groups.items()}
    gaps = {
        name: difference_by_seed(found, unions[str(reproduction.reference)])
        for name, found in unions.items()
        if name != reproduction.reference
    }
    rows = [of[name] for name in _by_family(of, unions)]
    return Product(
        title=reproduction.title,
        table=_table(reproduction, rows, groups, gaps),
        results=results,
        svg=_drawn(reproduction, rows, groups, gaps),
        sentences=(reproduction.reading, *_found(reproduction, rows, gaps)),
    )


def _unions(runs: Sequence[RunResult]) -> dict[int, float]:
    """In percent, by seed; where attacks ended in errors, the lower end."""
    return {run.seed: 100 * run.outcomes.union().value for run in runs}


def _by_family(of: Mapping[str, RowOf], unions: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Return the rows by union, greatest first, families together and ordered by their best."""
    mean = {name: mean_and_std([*found.values()])[0] for name, found in unions.items()}
    best: dict[str, float] = {}
    for name, value in mean.items():
        family = of[name].family
        best[family] = max(value, best.get(family, value))
    return sorted(mean, key=lambda name: (-best[of[name].family], of[name].family, -mean[name]))


def _passes(runs: Sequence[RunResult]) -> float | None:
    """Forward-backward passes of each training image, mean over seeds; None if unknown."""
    known = [(r.forwards + r.backwards) / 2 for r in runs if r.forwards and r.backwards]
    return mean_and_std(known)[0] if known else None


def _table(
    reproduction: Reproduction,
    rows: Sequence[RowOf],
    groups: Mapping[str, Sequence[RunResult]],
    gaps: Mapping[str, Difference | None],
) -> Table:
    table = comparison([run for row in rows for run in groups[row.name]])
    kept = [place for place, column in enumerate(table.columns) if column.key != "time"]
    more = (
        Column("passes", "Passes", lower_is_better=True),
        Column("difference", f"Union less {reproduction.reference}"),
        Column("family", "Family"),
    )
    body = [
        Row(
            row.name,
            (
                *(found.cells[place] for place in kept),
                _passes_cell(_passes(groups[row.name])),
                _gap_cell(gaps.get(row.name)),
                Cell(row.family),
            ),
        )
        for row, found in zip(rows, table.rows, strict=True)
    ]
    notes = (
        "Passes: forward-backward passes of each training image, all counted, as measured.",
        f"Union less {reproduction.reference}: mean of the differences of the same seeds, with its "
        "95 % interval by Student's t over the seeds; their number in brackets.",
    )
    columns = (*(table.columns[place] for place in kept), *more)
    return replace(
        table, columns=columns, rows=tuple(body), notes=(*table.notes, *notes), corner="row"
    )


def _passes_cell(passes: float | None) -> Cell:
    return Cell("–") if passes is None else Cell(f"{passes:,.0f}", "", round(passes))


def _gap_cell(gap: Difference | None) -> Cell:
    if gap is None:
        return Cell("–")
    half = "" if gap.half is None else f"± {gap.half:.1f} "
    return Cell(f"{gap.mean:+.1f}", f"{half}({len(gap.seeds)})", round(gap.mean, 1))


def _drawn(
    reproduction: Reproduction,
    rows: Sequence[RowOf],
    groups: Mapping[str, Sequence[RunResult]],
    gaps: Mapping[str, Difference | None],
) -> str | None:
    """Draw the differences at equal passes, and the union against the passes."""
    bars = [
        Gap(row.name, row.family, gap.mean, gap.half)
        for row in rows
        if row.length == "passes" and (gap := gaps.get(row.name)) is not None
    ]
    points = []
    for row in reproduction.rows:
        runs = groups.get(row.name, ())
        if row.point and (passes := _passes(runs)):
            shares = [value / 100 for value in _unions(runs).values()]
            ends = seed_interval(shares, len(runs[0].outcomes))
            points.append(CostPoint(f"equal {row.length}", row.point, passes, *ends))
    if len(points) < 2:
        points = []  # a single point is no curve
    if not bars and not points:
        return None
    return gaps_and_costs(bars, points, reference=str(reproduction.reference))


def _found(
    reproduction: Reproduction, rows: Sequence[RowOf], gaps: Mapping[str, Difference | None]
) -> list[str]:
    """Say which rows of equal passes differ from the reference beyond their intervals."""
    known = {
        row.name: gap
        for row in rows
        if row.length == "passes" and (gap := gaps.get(row.name)) and gap.half is not None
    }
    if not known:
        return []
    above = [name for name, gap in known.items() if gap.clear and gap.mean > 0]
    below = [name for name, gap in known.items() if gap.clear and gap.mean < 0]
    return [
        f"Beyond their intervals, at equal passes: above {reproduction.reference} "
        f"{', '.join(above) or 'none'}; below it {', '.join(below) or 'none'}. Of the {len(known)} "
        f"rows with several seeds, {0.05 * len(known):.1f} are expected there by chance alone."
    ]
