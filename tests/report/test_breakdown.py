"""The table of attacks: its rows add up, and each number is the count of images it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from multirobust.errors import InputError
from multirobust.evaluation import AttackColumn, Outcomes, State
from multirobust.report import RunResult, attack_table, breakdown, latex, markdown, text

S, B, E, K = State.SURVIVED, State.BROKEN, State.ERROR, State.SKIPPED

# Image 0 is wrong without attack; 1 falls to all, 2 to a alone, 3 to b and c, 4 to c alone,
# 5 errs under b, 6 and 7 stand.
TABLE = {
    "a": ("linf", [B, B, B, S, S, S, S, S], 2.0),
    "b": ("linf", [B, B, S, B, S, E, S, S], 30.0),
    "c": ("l2", [B, B, S, B, B, S, S, S], 600.0),
}


def outcomes(table=TABLE, **manifest) -> Outcomes:
    predictions = np.zeros(8, int)
    predictions[0] = 1
    predictions[[all(states[i] == E for _, states, _ in table.values()) for i in range(8)]] = -1
    columns = tuple(
        AttackColumn(
            name, threat, 0.1, states, np.zeros(8), seconds=seconds, forwards=seconds, backwards=1
        )
        for name, (threat, states, seconds) in table.items()
    )
    return Outcomes(np.arange(8), np.zeros(8, int), predictions, columns, manifest)


def shown(table) -> dict[str, dict[str, str]]:
    return {
        row.name: {c.key: cell.text for c, cell in zip(table.columns, row.cells, strict=True)}
        for row in table.rows
    }


def test_every_number_is_the_count_of_the_images_it_names():
    rows = shown(breakdown(outcomes()))
    expected = {
        "a": ("62.5", "7", "2", "1", "0", "3.0", "2.0 s"),
        "b": ("50.0–62.5", "7", "1", "0", "1", "31", "30 s"),
        "c": ("50.0", "7", "1", "1", "0", "601", "10 min"),
        "all (union)": ("25.0–37.5", "7", "4", "–", "1", "635", "11 min"),
    }
    assert {name: tuple(cells.values()) for name, cells in rows.items()} == expected


def test_what_breaks_first_and_what_stands_add_up_to_what_is_right_without_attack():
    found = outcomes()
    rows = shown(breakdown(found))
    *attacks, total = rows.values()
    first = sum(int(row["first"]) for row in attacks)
    assert first == int(total["first"])
    surely, maybe = found.survival()
    right = int((found.predictions == found.labels).sum())
    assert first + int(maybe.sum()) == right == int(total["seen"])
    assert int(total["errors"]) == int((maybe & ~surely).sum())


def test_the_order_decides_who_breaks_first_but_not_who_breaks_alone():
    forward = shown(breakdown(outcomes()))
    backward = shown(breakdown(outcomes(dict(reversed(TABLE.items())))))
    assert [forward[name]["first"] for name in "abc"] == ["2", "1", "1"]
    assert [backward[name]["first"] for name in "abc"] == ["1", "0", "3"]
    assert [forward[name]["only"] for name in "abc"] == [backward[name]["only"] for name in "abc"]
    assert forward["all (union)"] == backward["all (union)"]


def test_an_attack_that_was_spared_images_shows_a_range_and_how_many_it_saw():
    spared = {**TABLE, "c": ("l2", [B, K, K, K, B, S, S, S], 600.0)}
    row = shown(breakdown(outcomes(spared)))["c"]
    assert (row["alone"], row["seen"]) == ("37.5–75.0", "4")
    assert shown(breakdown(outcomes(spared)))["all (union)"]["alone"] == "25.0–37.5"


@pytest.mark.parametrize("render", [text, markdown, latex])
def test_each_form_has_a_row_for_every_attack_in_the_order_of_the_suite(render):
    table = breakdown(outcomes())
    lines = render(table).splitlines()
    begun = [
        next(i for i, line in enumerate(lines) if line.lstrip("| ").lower().startswith(f"{name} "))
        for name in ("attack", *TABLE, "all (union)")
    ]
    assert begun == sorted(begun)
    place = begun[2]
    assert "50.0" in lines[place]
    assert "31" in lines[place]
    assert "on 8 images" in render(table)


def test_notes_say_why_accuracies_are_ranges_and_only_then():
    plain = {"a": ("linf", [B, B, S, S, S, S, S, S], 1.0)}
    usual = breakdown(outcomes(plain)).notes
    failing = {
        "a": ("linf", [B, E, E, B, B, S, S, S], 1.0),
        "b": ("l2", [B, E, E, K, K, S, S, E], 1.0),
    }
    reasons = {"clean": ["RuntimeError: too bright"]}
    notes = breakdown(outcomes(failing, errors=reasons, mode="cascade")).notes
    assert usual[1:] == notes[1:2]
    first, errors, spared = notes[len(usual) :]
    assert first.startswith("2 images have no prediction: the model raised or returned NaN (Runt")
    assert errors.startswith("errors: images on which the attack failed")
    assert spared.startswith("Images spared an attack since an earlier one broke them (mode cascad")
    assert ": b 2. What it does to these is open" in spared


def test_outcomes_without_an_attack_have_no_breakdown():
    with pytest.raises(InputError, match="evaluate an attack first"):
        breakdown(dataclasses.replace(outcomes(), columns=()))


def test_the_table_of_attacks_has_each_defense_as_a_column_and_the_union_below():
    results = [RunResult("x", seed, outcomes()) for seed in (0, 1)]
    some = {name: TABLE[name] for name in "ab"}
    table = attack_table([*results, RunResult("y", 0, outcomes(some))])
    assert [column.heading for column in table.columns] == ["x", "y"]
    assert {name: tuple(cells.values()) for name, cells in shown(table).items()} == {
        "a": ("62.5", "62.5"),
        "b": ("50.0–62.5", "50.0–62.5"),
        "c": ("50.0", "–"),
        "all (union)": ("25.0–37.5", "37.5–50.0"),
    }
    assert [row.total for row in table.rows] == [False, False, False, True]
    assert any("not every image met the attack" in note for note in table.notes)


def test_the_table_of_attacks_takes_the_mean_over_seeds():
    stands, falls = ("linf", [S] * 8, 1.0), ("linf", [B, B, B, B, S, S, S, S], 1.0)
    right = dataclasses.replace(outcomes({}), predictions=np.zeros(8, int))
    found = []
    for seed, (threat, states, _) in enumerate((stands, falls)):
        column = AttackColumn("a", threat, 0.1, states, np.zeros(8))
        found.append(RunResult("x", seed, dataclasses.replace(right, columns=(column,))))
    (row, _) = attack_table(found).rows
    assert (row.cells[0].text, row.cells[0].value) == ("75.0", 75.0)


def test_a_table_of_no_attacks_is_refused():
    with pytest.raises(InputError, match="evaluate a suite"):
        attack_table([RunResult("x", 0, outcomes({}))])
