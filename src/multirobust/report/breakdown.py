"""The appendix table: what each attack of an evaluation adds to the others, and its cost."""

from __future__ import annotations

from multirobust.evaluation import Contribution, Estimate, Outcomes, contributions
from multirobust.report.tables import Cell, Column, Row, Table, duration

__all__ = ["breakdown"]

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
        Cell(_percent(union)),
        Cell(f"{int((outcomes.predictions == outcomes.labels).sum())}"),
        Cell(f"{sum(attack.first for attack in found)}"),
        Cell("–"),
        Cell(f"{sum(attack.errors for attack in found)}"),
        Cell(f"{sum(attack.passes for attack in found):,.0f}"),
        Cell(duration(sum(attack.seconds for attack in found))),
    )
    rows.append(Row("all (union)", total))
    notes = (
        f"Accuracy in percent on {len(outcomes):,} images, {outcomes.clean()} without attack.",
        "attacked: images the attack was run on. breaks first: images that no attack above it "
        "broke. only it breaks: images that no other attack of the table broke. passes: forward "
        "and backward, for each image of the evaluation.",
    )
    return Table(_COLUMNS, tuple(rows), notes, corner="attack")


def _cells(attack: Contribution) -> tuple[Cell, ...]:
    return (
        Cell(_percent(attack.alone)),
        Cell(f"{attack.seen}"),
        Cell(f"{attack.first}"),
        Cell(f"{attack.only}"),
        Cell(f"{attack.errors}"),
        Cell(f"{attack.passes:,.0f}" if attack.passes >= 10 else f"{attack.passes:.1f}"),
        Cell(duration(attack.seconds)),
    )


def _percent(accuracy: Estimate) -> str:
    low, high = 100 * accuracy.range_low, 100 * accuracy.range_high
    return f"{low:.1f}" if accuracy.exact else f"{low:.1f}–{high:.1f}"
