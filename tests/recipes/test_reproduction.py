"""The files behind the paper's tables and figures, and the tables made of results."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from multirobust import catalog
from multirobust.errors import InputError
from multirobust.evaluation import AttackColumn, Outcomes
from multirobust.recipes import Study, load_reproduction, scale_of
from multirobust.recipes.kinds import KINDS
from multirobust.recipes.tables import (
    SAYS,
    agreement,
    attacks_table,
    beside_the_paper,
    comparison_table,
    levels_table,
)
from multirobust.report import Cell, Column, Row, RunResult, Table, markdown, text

RECIPES = files("multirobust") / "recipes"
FILES = {
    entry.name.removesuffix(".toml"): entry
    for folder in ("paper", "studies")
    for entry in (RECIPES / folder).iterdir()
}
TABLES_OF_NORMS = ("table-1", "table-2", "table-3")


def result(name: str, seed: int, survived: dict[str, list[int]]) -> RunResult:
    """Return a run whose attacks leave the images standing that are 1; threat "name@level"."""
    count = len(next(iter(survived.values())))
    columns = tuple(
        AttackColumn(
            threat.replace("@", "_"),
            threat,
            0.1,
            1 - np.array(standing),
            np.zeros(count, np.float32),
        )
        for threat, standing in survived.items()
    )
    zeros = np.zeros(count, np.int64)
    outcomes = Outcomes(np.arange(count), zeros, zeros, columns)
    return RunResult(name, seed, outcomes, training_seconds=1.0, forwards=3.0, backwards=2.0)


def cell(table: Table, row: str, key: str) -> Cell:
    place = [column.key for column in table.columns].index(key)
    return next(r for r in table.rows if r.name == row).cells[place]


@pytest.mark.parametrize("name", catalog.REPRODUCTIONS)
def test_every_listed_reproduction_loads_and_opens_with_its_claim_and_command(name):
    reproduction = load_reproduction(name)
    header = FILES[name].read_text("utf-8").split("\n\n")[0]
    assert reproduction.kind in KINDS
    assert f"multirobust reproduce {name}" in header
    assert "claim" in header or "Shows" in header or "shows" in header


def test_the_list_names_every_file_and_no_other():
    assert set(FILES) == set(catalog.REPRODUCTIONS)


def test_an_unknown_table_is_one_error_that_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'table-3'"):
        load_reproduction("table3")


@pytest.mark.parametrize("name", TABLES_OF_NORMS)
def test_published_numbers_obey_what_the_paper_defines(name):
    """The union is at most each norm's accuracy; the average is their mean, as far as printed."""
    for published in load_reproduction(name).published.values():
        for row in published.rows.values():
            numbers = [float(part.split("±")[0]) for part in row]
            found = dict(zip(published.columns, numbers, strict=True))
            norms = [found[norm] for norm in ("linf", "l1", "l2")]
            assert found["union"] <= min(norms) + 0.051
            assert found["avg"] == pytest.approx(sum(norms) / 3, abs=0.65)


def test_tables_that_repeat_a_row_of_table_1_print_the_same_numbers():
    first = load_reproduction("table-1").published
    second = load_reproduction("table-2").published
    for data in ("cifar10", "svhn"):
        assert first[data].rows["mng_ac"] == second[data].rows["mng_ac"]


def test_the_papers_line_follows_its_row_and_misses_nothing():
    published = load_reproduction("table-1").published["cifar10"]
    ours = comparison_table(
        load_reproduction("table-1"),
        [result("mng_ac", 0, {"linf": [1, 0, 1, 1], "l1": [1, 1, 0, 1], "l2": [1, 1, 1, 1]})],
    )
    table = beside_the_paper(ours, published, "CIFAR-10")
    assert [row.name for row in table.rows] == ["mng_ac", SAYS]
    assert cell(table, SAYS, "union") == Cell("41.4", "± 0.7")
    assert cell(table, SAYS, "time") == Cell("8.4 h")
    assert cell(table, "mng_ac", "union").value == 50.0
    assert cell(table, "mng_ac", "passes").text == "5"
    assert "CIFAR-10" in text(table)
    assert "41.4 ± 0.7" in markdown(table)


@pytest.mark.parametrize(
    ("unions", "tau"), [((0.1, 25.0, 40.0), "1.00"), ((40.0, 25.0, 0.1), "-1.00")]
)
def test_agreement_is_kendalls_tau_of_the_orders(unions, tau):
    published = load_reproduction("table-1").published["cifar10"]
    names = ("standard", "adv_linf", "mng_ac")
    rows = tuple(Row(n, (Cell(str(u), "", u),)) for n, u in zip(names, unions, strict=True))
    sentence = agreement(Table((Column("union", "Acc union"),), rows), published)
    assert sentence
    assert f"tau {tau} " in sentence


def test_two_methods_have_no_order_to_agree_on():
    published = load_reproduction("table-1").published["cifar10"]
    rows = tuple(Row(n, (Cell("1", "", 1.0),)) for n in ("standard", "mng_ac"))
    assert agreement(Table((Column("union", "Acc union"),), rows), published) is None


def test_levels_are_averaged_over_attacks_or_over_levels():
    runs = [
        result(
            "sat",
            0,
            {"fog@1": [1, 1, 1, 1], "fog@2": [1, 0, 0, 0], "snow@1": [1, 1, 0, 0],
             "snow@2": [0, 0, 0, 0]},
        )
    ]  # fmt: skip
    by_attack = levels_table(load_reproduction("unforeseen"), runs)
    by_level = levels_table(load_reproduction("cifar10-c"), runs)
    assert [cell(by_attack, "sat", key).text for key in ("fog", "snow")] == ["62.5", "25.0"]
    assert [cell(by_level, "sat", key).text for key in ("1", "2")] == ["75.0", "12.5"]
    assert cell(by_attack, "sat", "mean").text == cell(by_level, "sat", "mean").text == "43.8"


def test_the_attack_table_gives_each_attack_alone_the_worst_of_a_threat_and_the_union():
    runs = [result("sat", seed, {"linf": [1, 1, 0, seed], "l2": [1, 0, 1, 1]}) for seed in (0, 1)]
    table = attacks_table(load_reproduction("breakdown"), runs)
    assert [row.name for row in table.rows] == [
        "clean", "linf", "worst of linf", "l2", "worst of l2", "union", "average",
    ]  # fmt: skip
    assert cell(table, "linf", "sat") == Cell("62.5", "± 17.7", 62.5)
    assert cell(table, "union", "sat").text == "37.5"


def test_a_scale_takes_the_papers_network_unless_told_otherwise():
    assert scale_of("svhn").build(["defenses=['sat']"]).model.name == "wrn_28_10"
    assert scale_of("cifar10", "preact_resnet_18").build().model.name == "preact_resnet_18"
    small = scale_of("cifar10", "small_cnn").build()
    assert (small.data.train_limit, small.model.widths) == (5000, (16, 32, 64, 64))
    with pytest.raises(InputError, match="digits"):
        scale_of("digit")


def test_rows_with_changes_never_share_a_folder_with_those_without(tmp_path):
    study = Study(
        reproduction=load_reproduction("figure-2"),
        scale=scale_of("digits"),
        seeds=(0, 1),
        output=tmp_path,
    )
    (row,) = study.rows
    plain, changed = study.runs(row), study.runs(row, ["defense.beta=8.0"])
    assert plain[0].folder == tmp_path / "digits-small_cnn" / "mng_ac-s0"
    assert changed[1].folder == tmp_path / "digits-small_cnn" / "defense.beta-8.0" / "mng_ac-s1"
    assert changed[0].recipe.defense.beta == 8.0
