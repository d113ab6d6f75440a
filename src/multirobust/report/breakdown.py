"""The appendix tables: every defense under each attack, and what each attack adds to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from multirobust.errors import InputError
from multirobust.evaluation import Contribution, Estimate, Outcomes, State, contributions
from multirobust.evaluation.intervals import mean_and_std
from multirobust.report.tables import Cell, Column, Row, RunResult, Table, duration, grouped

__all__ = ["attack_table", "breakdown"]

_COLUMNS = (
    Column("alone", "accuracy"),
    Column("seen", "attacked"),
    Column("first", "breaks first"),
    Column("only", "only it breaks"),
    Column("errors", "errors"),
    Column("passes", "passes"),
    Column("seconds", "time", lower_is_better=True),
)


def breakdown(outcomes: Outcomes) -> Table:
    """Return one row for each attack, in the order of the suite, and one for all together.

    Args:
        outcomes: Of one evaluation, at best in the mode "breakdown": where an attack was spared
            what an earlier one broke, its own accuracy is a range.

    Raises:
        InputError: If there is no attack.
    """
    union, found = outcomes.union(), contributions(outcomes)
    rows = [Row(attack.attack, _cells(attack)) for attack in found]
    total = (
        _accuracy([union]),
        _count(int((outcomes.predictions == outcomes.labels).sum())),
        _count(sum(attack.first for attack in found)),
        Cell("–"),
        _count(sum(attack.errors for attack in found)),
        _passes(sum(attack.passes for attack in found)),
        _time(sum(attack.seconds for attack in found)),
    )
    rows.append(Row("all (union)", total, total=True))
    notes = (
        f"Accuracy in percent on {len(outcomes):,} images, {outcomes.clean()} without attack.",
        "attacked: images the attack was run on. breaks first: images that no attack above it "
        "broke. only it breaks: images that no other attack of the table broke. passes: forward "
        "and backward, for each image of the evaluation.",
        *_open_notes(outcomes, found),
    )
    return Table(_COLUMNS, tuple(rows), notes, corner="attack")


def _open_notes(outcomes: Outcomes, found: Sequence[Contribution]) -> Iterator[str]:
    """Yield why accuracies are ranges: no prediction, errors of attacks, images spared."""
    failed = int((outcomes.predictions < 0).sum())
    if failed:
        reasons = outcomes.manifest.get("errors", {}).get("clean", [])
        why = f" ({reasons[0]})" if reasons else ""
        yield (
            f"{_images(failed)} no prediction: the model raised or returned NaN{why}. Not known to "
            "be robust or broken, so every accuracy is a range."
        )
    if any(attack.errors for attack in found):
        yield (
            "errors: images on which the attack failed, neither robust nor broken, so its accuracy "
            "is a range."
        )
    right = outcomes.predictions == outcomes.labels
    spared = [int((right & (c.states == State.SKIPPED)).sum()) for c in outcomes.columns]
    if any(spared):
        mode = outcomes.manifest.get("mode")
        listed = ", ".join(
            f"{c.name} {n:,}" for c, n in zip(outcomes.columns, spared, strict=True) if n
        )
        yield (
            f"Images spared an attack since an earlier one broke them"
            f"{f' (mode {mode})' if mode else ''}: {listed}. What it does to these is open, so its "
            "accuracy is a range; that of all together is not affected."
        )


def _images(count: int) -> str:
    return "1 image has" if count == 1 else f"{count:,} images have"


def attack_table(results: Sequence[RunResult]) -> Table:
    """Return one row for each attack and one for all together, one column for each defense.

    Args:
        results: At least one run. Several seeds of a defense show their mean; a defense that was
            spared an attack has a dash there.

    Raises:
        InputError: As in `comparison`, or if no run was attacked.
    """
    groups = grouped(results)
    names = list(dict.fromkeys(c.name for result in results for c in result.outcomes.columns))
    if not names:
        raise InputError("attack_table: needs at least one attack, got none; evaluate a suite.")

    def row(name: str, view: Callable[[Outcomes], Estimate | None], total: bool = False) -> Row:
        cells = []
        for runs in groups.values():
            views = [found for run in runs if (found := view(run.outcomes)) is not None]
            cells.append(_accuracy(views) if len(views) == len(runs) else Cell("–"))
        return Row(name, tuple(cells), total)

    rows = [row(name, lambda outcomes, name=name: _alone(outcomes, name)) for name in names]
    rows.append(row("all (union)", lambda o: o.union() if o.columns else None, total=True))
    note = "Accuracy in percent under each attack alone, over several seeds the mean."
    ranges = any("–" in cell.text[1:] for line in rows for cell in line.cells)
    notes = (
        (note, "low–high: not every image met the attack, or it ended in an error for some.")
        if ranges
        else (note,)
    )
    columns = tuple(Column(name, name) for name in groups)
    return Table(columns, tuple(rows), notes, corner="attack")


def _alone(outcomes: Outcomes, name: str) -> Estimate | None:
    known = any(column.name == name for column in outcomes.columns)
    return outcomes.attack(name) if known else None


def _cells(attack: Contribution) -> tuple[Cell, ...]:
    return (
        _accuracy([attack.alone]),
        _count(attack.seen),
        _count(attack.first),
        _count(attack.only),
        _count(attack.errors),
        _passes(attack.passes),
        _time(attack.seconds),
    )


def _accuracy(views: Sequence[Estimate]) -> Cell:
    low, _ = mean_and_std([100 * view.range_low for view in views])
    high, _ = mean_and_std([100 * view.range_high for view in views])
    exact = all(view.exact for view in views)
    return Cell(f"{low:.1f}" if exact else f"{low:.1f}–{high:.1f}", value=low)


def _count(number: int) -> Cell:
    return Cell(f"{number}", value=float(number))


def _passes(number: float) -> Cell:
    return Cell(f"{number:,.0f}" if number >= 10 else f"{number:.1f}", value=float(number))


def _time(seconds: float) -> Cell:
    return Cell(duration(seconds), value=float(seconds))
