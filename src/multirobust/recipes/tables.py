"""The paper's tables with our numbers in them, and the paper's own beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from multirobust.evaluation import Estimate, Outcomes
from multirobust.evaluation.intervals import mean_and_std
from multirobust.recipes.reproduction import Published, Reproduction
from multirobust.report import Cell, Column, Row, RunResult, Table, comparison
from multirobust.report.tables import grouped

__all__ = ["agreement", "attacks_table", "beside_the_paper", "comparison_table", "levels_table"]

SAYS = "· paper"
"""The line under a row that holds the paper's numbers."""

_PRINTED = re.compile(r"^(\d+(?:\.\d+)?)(?:±(\d+(?:\.\d+)?))?$")


def comparison_table(reproduction: Reproduction, results: Sequence[RunResult]) -> Table:
    """Return the table of defenses, with the columns that the paper shows."""
    table = _with_passes(comparison(results), results)
    wanted = reproduction.columns
    if wanted is None:
        return table
    places = [place for place, column in enumerate(table.columns) if _kind(column) in wanted]
    return replace(
        table,
        columns=tuple(table.columns[place] for place in places),
        rows=tuple(
            Row(row.name, tuple(row.cells[place] for place in places)) for row in table.rows
        ),
    )


def _with_passes(table: Table, results: Sequence[RunResult]) -> Table:
    """Return the table with what each training cost in passes, which no busy machine changes."""
    cells = []
    for runs in grouped(results).values():
        known = [
            run.forwards + run.backwards
            for run in runs
            if run.forwards is not None and run.backwards is not None
        ]
        mean = mean_and_std(known)[0] if len(known) == len(runs) else None
        cells.append(Cell("–") if mean is None else Cell(f"{mean:,.0f}", "", round(mean)))
    column = Column("passes", "Passes", lower_is_better=True)
    rows = (Row(row.name, (*row.cells, cell)) for row, cell in zip(table.rows, cells, strict=True))
    note = "Passes: forward and backward, of each training image in the whole training."
    return replace(
        table, columns=(*table.columns, column), rows=tuple(rows), notes=(*table.notes, note)
    )


def attacks_table(reproduction: Reproduction, results: Sequence[RunResult]) -> Table:
    """Return accuracy under each attack alone: a row an attack, a column a method.

    Each cell is the mean over seeds with its sample standard deviation. Attacks of one threat are
    followed by their worst case, and the union comes last.
    """
    groups = grouped(results)
    first = next(iter(groups.values()))[0].outcomes
    views: list[tuple[str, Callable[[Outcomes], Estimate]]] = [("clean", Outcomes.clean)]
    for threat in first.threats:
        names = [column.name for column in first.columns if column.threat == threat]
        views += [(name, lambda found, name=name: found.attack(name)) for name in names]
        views.append((f"worst of {threat}", lambda found, t=threat: found.worst(t)))
    views += [("union", Outcomes.union), ("average", Outcomes.average)]
    rows = tuple(
        Row(name, tuple(_cell([view(run.outcomes) for run in runs]) for runs in groups.values()))
        for name, view in views
    )
    columns = tuple(Column(name, name) for name in groups)
    return Table(columns, rows, _notes(results), corner="attack")


def levels_table(reproduction: Reproduction, results: Sequence[RunResult]) -> Table:
    """Return accuracy under attacks that come in levels, a row a method.

    A column is an attack, with the mean over its levels, or a level, with the mean over attacks.
    """
    groups = grouped(results)
    threats = next(iter(groups.values()))[0].outcomes.threats
    part = 0 if reproduction.by == "attack" else 1
    keys = list(dict.fromkeys(threat.split("@")[part] for threat in threats))
    gathered = {key: [t for t in threats if t.split("@")[part] == key] for key in keys}
    columns = [Column("clean", "clean")]
    columns += [Column(key, key if part == 0 else f"level {key}") for key in keys]
    columns.append(Column("mean", "mean"))

    def cells(runs: Sequence[RunResult]) -> Iterable[Cell]:
        yield _cell([run.outcomes.clean() for run in runs])
        for chosen in (*gathered.values(), threats):
            yield _cell([run.outcomes.average(chosen) for run in runs])

    rows = tuple(Row(name, tuple(cells(runs))) for name, runs in groups.items())
    over = "levels" if part == 0 else "attacks"
    return Table(
        tuple(columns), rows, (*_notes(results), f"Each column is the mean over its {over}.")
    )


def beside_the_paper(table: Table, published: Published | None, source: str) -> Table:
    """Return the table with a line of the paper's numbers under each row that the paper has."""
    if published is None:
        return table
    rows: list[Row] = []
    for row in table.rows:
        rows.append(row)
        if row.name in published.rows:
            found = dict(zip(published.columns, published.rows[row.name], strict=True))
            cells = (_printed(found.get(_kind(column), ""), column.key) for column in table.columns)
            rows.append(Row(SAYS, tuple(cells)))
    note = f"The lines below each row are the paper's numbers, for {source}."
    return replace(table, rows=tuple(rows), notes=(*table.notes, note))


def agreement(table: Table, published: Published | None, key: str = "union") -> str | None:
    """Say in one sentence how far the order of the methods is the paper's: Kendall's tau.

    Returns:
        None where there are not three methods to compare.
    """
    keys = [_kind(column) for column in table.columns]
    if published is None or key not in published.columns or key not in keys:
        return None
    place, theirs_at = keys.index(key), published.columns.index(key)
    pairs = [
        (cell.value, _number(published.rows[row.name][theirs_at]))
        for row in table.rows
        if row.name in published.rows and (cell := row.cells[place]).value is not None
    ]
    pairs = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
    if len(pairs) < 3:
        return None
    from scipy.stats import kendalltau

    ours, theirs = np.array(pairs, dtype=float).T
    tau = float(np.asarray(kendalltau(ours, theirs))[0])
    if np.isnan(tau):
        return None
    return (
        f"Order of the {len(pairs)} methods by {key}: Kendall's tau {tau:.2f} between ours and the "
        "paper's (1 the same order, 0 unrelated)."
    )


def _kind(column: Column) -> str:
    """Return the key of a column without the level of its attack."""
    return column.key.partition("@")[0]


def _cell(views: Sequence[Estimate]) -> Cell:
    low, std = mean_and_std([100 * view.range_low for view in views])
    text, detail = f"{low:.1f}", "" if std is None else f"± {std:.1f}"
    if not all(view.exact for view in views):
        high, _ = mean_and_std([100 * view.range_high for view in views])
        text, detail = f"{low:.1f}–{high:.1f}", ""
    return Cell(text, detail, round(low, 1))


def _notes(results: Sequence[RunResult]) -> tuple[str, ...]:
    sizes: Mapping[int, None] = dict.fromkeys(len(run.outcomes) for run in results)
    seeds = {run.seed for run in results}
    images = " and ".join(f"{size:,}" for size in sizes)
    over = (
        f"mean ± sample standard deviation over {len(seeds)} seeds"
        if len(seeds) > 1
        else ("one seed")
    )
    return (f"Accuracy in percent on {images} images; {over}.",)


def _printed(text: str, key: str) -> Cell:
    match = _PRINTED.match(text)
    if not match:
        return Cell("–")
    mean, std = match.groups()
    return Cell(f"{mean} h" if key == "time" else mean, f"± {std}" if std else "")


def _number(text: str) -> float | None:
    match = _PRINTED.match(text)
    return float(match.group(1)) if match else None
