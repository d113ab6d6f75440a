from __future__ import annotations

import doctest
import importlib
import re
import statistics

import numpy as np
import pytest

from multirobust.errors import InputError
from multirobust.evaluation import AttackColumn, Outcomes, wilson
from multirobust.report import RunResult, comparison, duration, latex, markdown, text


def cells(table, name):
    row = next(row for row in table.rows if row.name == name)
    return {c.key: cell for c, cell in zip(table.columns, row.cells, strict=True)}


def test_columns_are_those_of_the_papers_table_in_its_order(five):
    keys = [column.key for column in comparison(five).columns]
    assert keys == ["clean", "linf", "l1", "l2", "union", "avg", "time"]


def test_one_seed_shows_the_accuracy_with_its_wilson_interval(five):
    low, high = wilson(0.45, 1000)
    cell = cells(comparison(five), "adv_linf")["linf"]
    assert (cell.text, cell.detail) == ("45.0", f"[{100 * low:.1f}, {100 * high:.1f}]")


def test_union_and_average_follow_from_the_images(five):
    shown = cells(comparison(five), "adv_linf")
    assert shown["union"].text == "20.0"
    assert shown["avg"].text == f"{100 * (0.45 + 0.2 + 0.5) / 3:.1f}"


def test_several_seeds_show_mean_and_sample_standard_deviation(run):
    shares = [0.40, 0.43, 0.41]
    table = comparison([run("sat", seed, linf=share) for seed, share in enumerate(shares)])
    cell = cells(table, "sat")["linf"]
    percent = [100 * share for share in shares]
    assert cell.text == f"{statistics.mean(percent):.1f}"
    assert cell.detail == f"± {statistics.stdev(percent):.1f}"
    assert len(table.rows) == 1


@pytest.mark.parametrize("seeds", [1, 2])
def test_errors_show_the_range_that_they_leave(run, seeds):
    table = comparison([run("sat", seed, linf=0.4, errors=10) for seed in range(seeds)])
    cell = cells(table, "sat")["linf"]
    assert (cell.text, cell.detail, cell.value) == ("39.0–40.0", "", 39.0)
    assert any("errors" in note for note in table.notes)


def test_best_and_second_best_are_ranked_and_equals_share_a_rank(run):
    runs = [
        run("a", linf=0.5, seconds=100.0),
        run("b", linf=0.5, seconds=50.0),
        run("c", linf=0.3, seconds=70.0),
        run("d", linf=0.1, seconds=70.2),
    ]
    table = comparison(runs)
    assert [cells(table, name)["linf"].rank for name in "abcd"] == [1, 1, 2, 0]
    assert [cells(table, name)["time"].rank for name in "abcd"] == [0, 1, 2, 2]
    assert [cells(table, name)["clean"].rank for name in "abcd"] == [0, 0, 0, 0]


def test_what_was_not_measured_is_a_dash_without_a_rank(run):
    table = comparison([run("a", linf=0.5, seconds=None), run("b", linf=0.4, l1=0.3), run("c")])
    assert cells(table, "a")["l1"].text == "–"
    assert cells(table, "a")["time"].text == "–"
    assert cells(table, "c")["union"].text == "–"
    assert cells(table, "c")["union"].rank == 0
    assert any("not every run met every threat" in note for note in table.notes)


@pytest.mark.parametrize(
    ("change", "caution"),
    [
        ({"radii": {"linf": 4 / 255}}, "different radii of linf"),
        ({"n": 500}, "different numbers of images"),
    ],
)
def test_runs_that_do_not_compare_carry_a_caution(run, change, caution):
    notes = comparison([run("a", linf=0.5), run("b", linf=0.5, **change)]).notes
    assert any(caution in note for note in notes)


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "at least one run"), ([("a", 0), ("a", 0)], "two runs are called 'a' with seed 0")],
)
def test_no_run_and_a_run_named_twice_are_refused(run, names, message):
    with pytest.raises(InputError, match=message):
        comparison([run(name, seed, linf=0.5) for name, seed in names])


def test_seeds_attacked_by_different_threats_are_refused(run):
    with pytest.raises(InputError, match="evaluate them with the same suite"):
        comparison([run("a", 0, linf=0.5), run("a", 1, l1=0.5)])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.04 s"), (9.96, "10 s"), (59.6, "1.0 min"), (3575.0, "1.0 h"), (59040.0, "16.4 h")],
)
def test_durations_never_say_60_of_a_unit(seconds, said):
    assert duration(seconds) == said


def test_examples_in_the_docstrings_are_true():
    module = importlib.import_module("multirobust.report.tables")
    assert doctest.testmod(module).failed == 0


def test_text_lines_up_and_marks_best_and_second_best(five):
    lines = text(comparison(five)).splitlines()
    body = lines[2:7]
    assert all(line.index("]") == body[0].index("]") for line in body)
    assert "*45.0*" in body[1]
    assert "_41.0_" in body[4]
    assert lines[8] == "*best*, _second-best_."


def test_text_without_details_fits_a_terminal(five):
    lines = text(comparison(five), details=False).splitlines()[:7]
    assert max(map(len, lines)) <= 80
    assert not any("[" in line for line in lines)


def test_markdown_has_the_same_number_of_cells_in_every_line(five):
    lines = markdown(comparison(five)).split("\n\n")[0].splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {9}
    assert "**45.0**" in lines[3]
    assert "<u>41.0</u>" in lines[6]


def test_latex_rows_have_one_cell_per_column(five):
    out = latex(comparison(five))
    rows = [line for line in out.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {7}
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\textbf{45.0}", r"adv\_linf"):
        assert part in out


HOSTILE = "a|b & <i>_x_ 50% $1 #{~^\\}\n\x1b[31m*"


def test_hostile_names_do_not_break_out_of_a_cell(run):
    table = comparison([run(HOSTILE, linf=0.4)])
    plain = text(table)
    assert "\x1b" not in plain
    assert len(plain.split("\n\n")[0].splitlines()) == 3
    row = markdown(table).splitlines()[2]
    assert len(re.findall(r"(?<!\\)\|", row)) == 1 + len(table.columns) + 1
    assert "<i>" not in row
    name = latex(table).split("\\midrule\n")[1].split(" & 90.0")[0]
    assert not re.findall(r"(?<!\\)[&%$#_]", name)
    assert r"\textbackslash{}" in name


def test_latex_writes_ranges_and_deviations_in_its_own_signs(run):
    out = latex(comparison([run("a", 0, linf=0.4, errors=10), run("b", 0, linf=0.4)]))
    assert "39.0--40.0" in out
    seeds = latex(comparison([run("a", seed, linf=0.4 + seed / 10) for seed in range(2)]))
    assert r"$\pm$ 7.1" in seeds
    assert "±" not in seeds.split("tabular", 1)[1]


def test_findings_of_the_audit_stand_below_the_table():
    found = [{"code": "randomness", "message": "m"}, {"code": "randomness", "message": "n"}]
    result = RunResult("sat", 0, outcomes_of(audit=found))
    notes = comparison([result]).notes
    assert any(
        note.startswith("Caution: the audit of sat (seed 0) found randomness;") for note in notes
    )


def test_images_spared_by_a_cascade_are_told_from_errors():
    states = {"linf": [1, 0, 0, 0], "l2": [3, 0, 1, 0]}
    notes = comparison([RunResult("sat", 0, outcomes_of(states))]).notes
    assert any("mode cascade" in note for note in notes)
    assert not any("errors" in note for note in notes)


def outcomes_of(states=None, **manifest) -> Outcomes:
    states = states or {"linf": [1, 0, 0, 0]}
    columns = tuple(
        AttackColumn(f"a_{name}", name, 0.1, np.array(codes), np.zeros(len(codes)))
        for name, codes in states.items()
    )
    n = len(columns[0].states)
    zeros = np.zeros(n, dtype=int)
    return Outcomes(np.arange(n), zeros, zeros, columns, dict(manifest))
