"""The comparison table of the paper: one row a defense, one column a way to attack it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from multirobust.errors import InputError
from multirobust.evaluation.intervals import Estimate, mean_and_std
from multirobust.evaluation.outcomes import Outcomes
from multirobust.evaluation.state import State

__all__ = [
    "Cell",
    "Column",
    "Row",
    "RunResult",
    "Table",
    "comparison",
    "duration",
    "estimate",
    "grouped",
    "threats_of",
]

Rank: TypeAlias = Literal[0, 1, 2]
"""1 for the best of a column, 2 for the second-best, 0 for the others."""

PAPER_ORDER = ("linf", "l1", "l2")


@final
@dataclass(frozen=True)
class RunResult:
    """One trained model with its evaluation, as the tables and the report need it.

    Args:
        name: Label of the defense; runs with the same label are seeds of one row.
        seed: Seed of the training.
        outcomes: What the evaluation found.
        training_seconds: Wall time of the training, None where unknown.
        forwards: Forward passes of one image in the whole training, summed over images.
        backwards: Backward passes, counted alike.
        device: The machine that trained, in words.
    """

    name: str
    seed: int
    outcomes: Outcomes
    training_seconds: float | None = None
    forwards: float | None = None
    backwards: float | None = None
    device: str = "unknown"


@final
@dataclass(frozen=True)
class Column:
    """A column: its key ("clean", a threat, "union", "avg" or "time") and its plain heading."""

    key: str
    heading: str
    lower_is_better: bool = False


@final
@dataclass(frozen=True)
class Cell:
    """A number with its doubt.

    Args:
        text: The number: "43.4", "43.0–44.0" where errors leave a range, "–" where there is none.
        detail: Its doubt: "[42.1, 44.8]" over images, "± 0.3" over seeds, or empty.
        value: The number to compare by, at the precision shown; None where there is none.
        rank: 1 best of its column, 2 second-best, else 0.
    """

    text: str
    detail: str = ""
    value: float | None = None
    rank: Rank = 0


@final
@dataclass(frozen=True)
class Row:
    """One defense: its name, one cell per column, and whether it sums up the rows above it."""

    name: str
    cells: tuple[Cell, ...]
    total: bool = False


@final
@dataclass(frozen=True)
class Table:
    """Columns, rows, notes on how to read them, and what the rows are."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    corner: str = "defense"


def comparison(results: Sequence[RunResult]) -> Table:
    """Compare defenses as in Table 1 of the paper.

    Each defense is one row. With one seed a cell shows the accuracy with its 95 % Wilson interval
    over images; with several the mean and the sample standard deviation over seeds. Where an
    attack ended in errors it shows the range that they leave, and counts for the ranking at its
    lower end. Values that look equal as shown share their rank; a column of equals has none.

    Args:
        results: At least one run; rows keep the order in which the names first appear.

    Raises:
        InputError: If there is no run, or two runs share both name and seed, or the seeds of one
            name were not attacked by the same threats.
    """
    groups = grouped(results)
    threats = threats_of(results)
    columns = _columns(threats)
    body = [[_cell(runs, column.key) for column in columns] for runs in groups.values()]
    ranked = [
        _rank(column_cells, column.lower_is_better)
        for column, column_cells in zip(columns, zip(*body, strict=True), strict=True)
    ]
    rows = tuple(
        Row(name, cells) for name, cells in zip(groups, zip(*ranked, strict=True), strict=True)
    )
    return Table(columns, rows, tuple(_notes(groups, threats)))


def grouped(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Gather the seeds of each name, in order of first appearance.

    Raises:
        InputError: As in `comparison`.
    """
    if not results:
        raise InputError("results: needs at least one run, got none; name a run to compare.")
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        runs = groups.setdefault(result.name, [])
        if any(run.seed == result.seed for run in runs):
            raise InputError(
                f"results: two runs are called {result.name!r} with seed {result.seed}; "
                f"name each run once, and give different defenses different labels."
            )
        if runs and set(runs[0].outcomes.threats) != set(result.outcomes.threats):
            raise InputError(
                f"results: the seeds of {result.name!r} were attacked by different threats, "
                f"{runs[0].outcomes.threats} and {result.outcomes.threats}; "
                f"evaluate them with the same suite."
            )
        runs.append(result)
    return groups


def duration(seconds: float) -> str:
    """Say a time in the unit that suits it, to at least two figures.

    >>> [duration(s) for s in (0.35, 41.0, 252.0, 1500.0, 19800.0)]
    ['0.35 s', '41 s', '4.2 min', '25 min', '5.5 h']
    """
    return " ".join(_spoken(seconds)[:2])


def _spoken(seconds: float) -> tuple[str, str, float]:
    """Return the shown number, its unit, and the seconds that the shown text stands for."""
    if seconds >= 59.5 * 60:
        number, unit, size = f"{seconds / 3600:.1f}", "h", 3600
    elif seconds >= 59.5:
        number, unit, size = _figures(max(1.0, seconds / 60)), "min", 60
    else:
        number, unit, size = _figures(seconds), "s", 1
    return number, unit, float(number) * size


def _figures(number: float) -> str:
    if number >= 9.95:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 0.995 else f"{number:.2g}"


def threats_of(results: Iterable[RunResult]) -> tuple[str, ...]:
    """Return the threats of all runs, those of the paper first and in its order."""
    found = dict.fromkeys(t for result in results for t in result.outcomes.threats)
    return (*(t for t in PAPER_ORDER if t in found), *(t for t in found if t not in PAPER_ORDER))


def _columns(threats: Sequence[str]) -> tuple[Column, ...]:
    headings = {"linf": "l∞", "l1": "l1", "l2": "l2"}
    attacked = [Column(threat, headings.get(threat, threat)) for threat in threats]
    both = [Column("union", "Acc union"), Column("avg", "Acc avg")] if threats else []
    return (
        Column("clean", "Acc clean"),
        *attacked,
        *both,
        Column("time", "Time", lower_is_better=True),
    )


def estimate(outcomes: Outcomes, key: str) -> Estimate | None:
    """Return the view that a column shows; None where its threat was not attacked."""
    views: dict[str, Callable[[], Estimate]] = {"clean": outcomes.clean}
    if outcomes.threats:
        views |= {"union": outcomes.union, "avg": outcomes.average}
    if key in views:
        return views[key]()
    return outcomes.worst(key) if key in outcomes.threats else None


def _cell(runs: Sequence[RunResult], key: str) -> Cell:
    if key == "time":
        return _time_cell([run.training_seconds for run in runs])
    views = [view for run in runs if (view := estimate(run.outcomes, key)) is not None]
    if not views:
        return Cell("–")
    low, std = mean_and_std([100 * view.range_low for view in views])
    if not all(view.exact for view in views):
        high, _ = mean_and_std([100 * view.range_high for view in views])
        return Cell(f"{low:.1f}–{high:.1f}", "", round(low, 1))
    if std is not None:
        return Cell(f"{low:.1f}", f"± {std:.1f}", round(low, 1))
    return Cell(
        f"{low:.1f}", f"[{100 * views[0].low:.1f}, {100 * views[0].high:.1f}]", round(low, 1)
    )


def _time_cell(seconds: Sequence[float | None]) -> Cell:
    known = [value for value in seconds if value is not None and math.isfinite(value)]
    if not known or len(known) < len(seconds):
        return Cell("–")
    mean, _ = mean_and_std(known)
    return Cell(duration(mean), "", _spoken(mean)[2])


def _rank(cells: Sequence[Cell], lower_is_better: bool) -> list[Cell]:
    values = {cell.value for cell in cells if cell.value is not None}
    order = sorted(values, reverse=not lower_is_better)
    ranks: dict[float, Rank] = dict(zip(order, (1, 2), strict=False)) if len(order) > 1 else {}
    return [
        cell
        if cell.value is None
        else Cell(cell.text, cell.detail, cell.value, ranks.get(cell.value, 0))
        for cell in cells
    ]


def _notes(groups: dict[str, list[RunResult]], threats: Sequence[str]) -> Iterable[str]:
    runs = [run for group in groups.values() for run in group]
    sizes = sorted({len(run.outcomes) for run in runs})
    images = f"{sizes[0]:,} images" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,} images"
    yield f"Accuracy in percent on {images}: each threat by its strongest attack on every image."
    several = [len(group) for group in groups.values() if len(group) > 1]
    if len(several) < len(groups):
        yield "[low, high]: 95 % Wilson interval over the images, one seed."
    if several:
        yield "±: sample standard deviation over seeds."
    columns = [column for run in runs for column in run.outcomes.columns]
    if any((column.states == State.ERROR).any() for column in columns):
        yield "low–high without brackets: some attacks ended in errors; neither robust nor broken."
    if any(not run.outcomes.worst(t).exact for run in runs for t in run.outcomes.threats) and any(
        (column.states == State.SKIPPED).any() for column in columns
    ):
        yield (
            "low–high without brackets: images that one threat broke were spared the others "
            "(mode cascade); the union is exact."
        )
    for run in runs:
        codes = dict.fromkeys(found["code"] for found in run.outcomes.manifest.get("audit") or [])
        if codes:
            yield (
                f"Caution: the audit of {run.name} (seed {run.seed}) found {', '.join(codes)}; see "
                "its outcomes.json."
            )
    if len(sizes) > 1:
        yield "Caution: the runs were evaluated on different numbers of images."
    if any(set(run.outcomes.threats) != set(threats) for run in runs):
        yield "Caution: not every run met every threat; their unions and averages do not compare."
    radii: dict[str, set[float]] = {}
    for column in (column for run in runs for column in run.outcomes.columns):
        radii.setdefault(column.threat, set()).add(round(column.radius, 9))
    for threat in (threat for threat in threats if len(radii[threat]) > 1):
        yield f"Caution: the runs were attacked with different radii of {threat}."
    if len({run.device for run in runs}) > 1:
        yield "Caution: the runs were trained on different devices; their times do not compare."
