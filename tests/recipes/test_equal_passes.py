"""The study at equal passes: its rows, its rounds, its differences, and its table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drawings import description
from multirobust.attacks import threats_from
from multirobust.config import DefenseConfig
from multirobust.errors import InputError, Interrupted
from multirobust.evaluation import AttackColumn, Outcomes
from multirobust.recipes import (
    Product,
    Progress,
    Reproduction,
    Study,
    load_reproduction,
    remade,
    reproduce,
    scale_of,
)
from multirobust.recipes.equal_passes import planned
from multirobust.report import RunResult, read_record
from tiny_runs import SMALL

STUDY = load_reproduction("choose-the-attack")
ROWS = {row.name: row for row in STUDY.rows}
TOY = (*SMALL, "training.batch_size=16", "data.train_limit=72", "data.validation=8")


def study(output: Path, **changes: Any) -> Study:
    settings = {"suite": "quick", "limit": 4, "overrides": TOY, "passes": 3.0, "seeds": (0,)}
    settings |= {"reproduction": STUDY, "scale": scale_of("digits"), **changes}
    return Study(output=output, **settings)


def result(name: str, seed: int, standing: int, passes: float = 287.0) -> RunResult:
    """Return a run of which so many of ten images withstand."""
    states = (np.arange(10) >= standing).astype(np.int64)
    zeros = np.zeros(10, np.int64)
    columns = tuple(
        AttackColumn(norm, norm, 0.1, states, np.zeros(10, np.float32))
        for norm in ("linf", "l2", "l1")
    )
    outcomes = Outcomes(np.arange(10), zeros, zeros, columns)
    return RunResult(name, seed, outcomes, forwards=passes + 1, backwards=passes - 1)


def texts(product: Product, key: str) -> dict[str, tuple[str, str]]:
    place = [column.key for column in product.table.columns].index(key)
    return {
        row.name: (row.cells[place].text, row.cells[place].detail) for row in product.table.rows
    }


# The rows


def test_there_is_a_row_for_every_sampler_third_view_and_number_of_steps():
    samplers = DefenseConfig.model_fields["sampler"].annotation.__args__
    for name in (f"{d}_mixed-{sampler}" for d in ("sat", "mng_ac") for sampler in samplers):
        assert ROWS[name].changes == (f"defense.sampler={name.partition('-')[2]!r}",)
    views = ("frozen", "gaussian", "uniform_in_ball", "none", "smooth", "straight_through")
    assert {f"mng_ac-{view}" for view in views} <= set(ROWS)
    assert {"adv_max", "adv_avg", "msd", "sat", "e_at", "ramp", "mng_ac"} <= set(ROWS)
    assert all(row.family for row in STUDY.rows)
    for steps in (3, 5, 7, 20):
        assert ROWS[f"sat_mixed-T{steps}"].changes[1] == f"defense.apgd_steps={steps}"
    assert DefenseConfig().apgd_steps == 10  # of sat_mixed-stratified
    curve = {row.point for row in STUDY.rows if row.length == "epochs"}
    assert curve == {f"T = {steps}" for steps in (3, 5, 7, 10, 20)}


def test_no_two_rows_are_one_training_and_all_but_those_of_epochs_have_the_passes(tmp_path):
    rows = planned(study(tmp_path, overrides=(), passes=None))
    assert len({runs[0].folder for _, runs in rows.values()}) == len(rows) == len(STUDY.rows)
    for row, (run,) in rows.values():
        training = run.recipe.training
        assert training.passes == (None if row.length == "epochs" else 287.0)
        assert training.epochs == 20


def test_the_unit_is_what_sat_spends_in_the_epochs_of_the_scale():
    for data, model in (("digits", None), ("cifar10", "small_cnn"), ("cifar10", None)):
        scale = scale_of(data, model)
        recipe = scale.build(["defenses=['sat']"])
        steps = [getattr(recipe.attack, norm).steps for norm in ("linf", "l2", "l1")]
        passes = STUDY.passes.get(scale.name, STUDY.passes[data])
        assert passes == round(recipe.training.epochs * (sum(steps) / 3 + 1))


@pytest.mark.parametrize(
    ("threats", "radii"),
    [("cifar10", (128 / 255, 2000 / 255)), ("e_at", (0.5, 12.0)), ("e_at_hard", (1.5, 12.0))],
)
def test_at_other_radii_step_sizes_keep_their_ratio_to_the_radius(threats, radii):
    scale = scale_of("cifar10")
    usual = scale.build()
    other = scale.build([f"threats.preset={threats!r}", *STUDY.threats[threats]])
    before, after = (threats_from(recipe.threats) for recipe in (usual, other))
    assert (after["l2"].radius, after["l1"].radius) == radii
    for norm in ("linf", "l2", "l1"):
        sizes = [
            (
                getattr(recipe.attack, norm).step_size,
                getattr(recipe.evaluation.attack, norm).step_size,
                getattr(recipe.defense, f"msd_{norm}"),
            )
            for recipe in (usual, other)
        ]
        grown = after[norm].radius / before[norm].radius
        assert sizes[1] == pytest.approx([grown * size for size in sizes[0]], rel=0.02)


def test_other_radii_have_a_folder_of_their_own(tmp_path):
    made = study(tmp_path, scale=scale_of("cifar10", "small_cnn"), threats="e_at")
    assert made.folder == tmp_path / "cifar10-small_cnn-e_at"


# Making it

CHOSEN = ("sat_mixed-cascade", "sat_mixed-T3-epochs")


def interrupted(output: Path, **changes: Any) -> Product:
    """Make the study in pieces, with a stop at every fifth question."""
    asked, stops = 0, 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked % 5 == 0

    while True:
        try:
            product = reproduce(study(output, **changes), Progress(stop=stop))
        except Interrupted:
            stops += 1
        else:
            assert stops > 0
            return product


def test_a_study_in_pieces_and_rounds_is_that_in_one_go(tmp_path):
    whole = reproduce(study(tmp_path / "whole", names=CHOSEN))
    assert str(interrupted(tmp_path / "parts", names=CHOSEN)) == str(whole)
    models = [sorted(folder.rglob("model.safetensors")) for folder in tmp_path.iterdir()]
    assert len(models[0]) == len(models[1]) == 3
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*models, strict=True))
    passes = {run.name: (run.forwards + run.backwards) / 2 for run in whole.results}
    assert set(passes) == {"sat", *CHOSEN}
    # One epoch: three steps, their first pass, and the loss.
    assert passes.pop("sat_mixed-T3-epochs") == pytest.approx(3 + 0.5 + 1)
    # A step is a quarter of the images: three attacks of 10.5 passes as a probe, three at most as
    # the cascade, and the loss.
    assert all(3 <= spent < 3 + (6 * 10.5 + 1) / 4 for spent in passes.values())

    # A second round: another seed for one row; the others stay as they are.
    product = reproduce(study(tmp_path / "whole", names=CHOSEN[:1], seeds=(0, 1)))
    seeds = {name: sum(run.name == name for run in product.results) for name in ("sat", *CHOSEN)}
    assert list(seeds.values()) == [2, 2, 1]
    told = texts(product, "difference")
    assert told["sat_mixed-cascade"][1].endswith("(2)")
    assert told["sat_mixed-T3-epochs"][1] == "(1)"
    paths = product.write(tmp_path / "out", "choose-the-attack", command="multirobust reproduce")
    again = remade(STUDY, "digits", read_record(paths[1]))
    assert again.page("choose-the-attack") == paths[0].read_text("utf-8")
    assert len(paths) == 3


def test_every_row_can_start_from_one_model(tmp_path):
    table = load_reproduction("table-1")
    first = study(tmp_path, reproduction=table, passes=None, defenses=("adv_linf",))
    reproduce(first)
    start = first.folder / "adv_linf-s0"
    more = (*TOY, f"training.init_from={str(start)!r}", "training.peak_lr=0.05")
    reproduce(study(tmp_path / "warm", names=("sat_mixed-race",), overrides=more))
    files = [*(tmp_path / "warm").rglob("training.json")]
    made = [json.loads(path.read_text("utf-8")) for path in files]
    assert [facts["init_from"]["defense"] for facts in made] == ["adv_linf"] * 2


def test_the_command_makes_the_rows_it_names_and_the_reference(multirobust, tmp_path):
    settings = [part for override in TOY for part in ("--set", override)]
    command = (
        "reproduce", "choose-the-attack", "--seeds", 1, "--limit", 4, "--suite", "quick",
        "--passes", 3, "--row", "sat_mixed-T5", "--output", tmp_path, *settings,
    )  # fmt: skip
    answer = multirobust(*command)
    assert answer.code == 0, answer.err
    folder = tmp_path / "digits-small_cnn"
    trained = {path.parent.name for path in folder.rglob("training.json")}
    assert trained == {"sat-s0", "sat_mixed-s0"}
    assert "Union less sat" in answer.out
    assert (folder / "choose-the-attack.svg").is_file()

    # The same models on the images that choices are made on, beside it.
    answer = multirobust(*command, "--split", "validation")
    assert answer.code == 0, answer.err
    assert "held-out training images" in answer.out
    for split, name in (
        ("test", "choose-the-attack"),
        ("validation", "choose-the-attack-validation"),
    ):
        record = json.loads((folder / f"{name}.json").read_text("utf-8"))
        assert {run["manifest"]["evaluation"]["split"] for run in record["runs"]} == {split}


# What it says


def ranking() -> Product:
    """Rows of one seed and of several, above, at and below sat."""
    unions: dict[str, Sequence[int]] = {
        "sat": (4, 5, 6), "mng_ac": (4, 6, 8), "mng_ac-none": (1, 2, 3), "sat_mixed-T3": (7,),
        "adv_max": (5, 6, 7), "sat_mixed-T3-epochs": (9, 9, 9), "sat_mixed-stratified": (5,),
    }  # fmt: skip
    return remade(
        STUDY,
        "digits",
        [
            result(name, seed, standing, 90.0 if name.endswith("epochs") else 287.0)
            for name, found in unions.items()
            for seed, standing in enumerate(found)
        ],
    )


def test_families_stand_together_and_in_each_the_greatest_union_first():
    product = ranking()
    assert [(name, family) for name, (family, _) in texts(product, "family").items()] == [
        ("sat_mixed-T3-epochs", "steps at equal epochs"),
        ("sat_mixed-T3", "steps at equal passes"),
        ("adv_max", "fixed rules"),
        ("sat", "fixed rules"),
        ("mng_ac", "third views of MNG-AC"),
        ("mng_ac-none", "third views of MNG-AC"),
        ("sat_mixed-stratified", "samplers on SAT"),
    ]


def test_differences_are_those_of_the_seeds_with_students_interval():
    product = ranking()
    # mng_ac: 0, 10 and 20 points, so 10 ± t(2) 10 / sqrt(3), t(2) = 4.303.
    assert texts(product, "difference") == {
        "sat": ("–", ""),
        "mng_ac": ("+10.0", "± 24.8 (3)"),
        "mng_ac-none": ("-30.0", "± 0.0 (3)"),
        "adv_max": ("+10.0", "± 0.0 (3)"),
        "sat_mixed-T3": ("+30.0", "(1)"),
        "sat_mixed-stratified": ("+10.0", "(1)"),
        "sat_mixed-T3-epochs": ("+40.0", "± 24.8 (3)"),
    }
    assert texts(product, "passes")["sat"] == ("287", "")
    assert "at equal passes: above sat adv_max; below it mng_ac-none." in product.sentences[1]
    assert "Of the 3 rows" in product.sentences[1]


def test_the_figure_says_every_difference_and_every_point():
    svg = ranking().svg
    assert svg is not None
    said = description(svg)
    assert "mng_ac: +10.0 ± 24.8 points." in said
    assert "sat_mixed-T3-epochs" not in said  # not at equal passes
    assert "equal epochs, T = 3: 90.0 % [90.0, 90.0] for 90 passes." in said
    assert "equal passes, sat: 50.0 % [25.2, 74.8] for 287 passes." in said


def test_a_reference_of_unknown_passes_is_a_table_without_a_figure_and_none_is_nothing():
    product = remade(STUDY, "digits", [replace(result("sat", 0, 4), forwards=None)])
    assert product.svg is None
    assert texts(product, "passes")["sat"] == ("–", "")
    assert len(product.table.rows) == 1
    with pytest.raises(InputError, match="compared with 'sat', of which there is no result"):
        remade(STUDY, "digits", [result("msd", 0, 4)])


# What it refuses


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ("sat_mixed-cascde",)}, r"Unknown row .*Did you mean 'sat_mixed-cascade'"),
        ({"defenses": ("ant",)}, "ant is no row of choose-the-attack"),
        ({"threats": "e_at"}, "--threats: the digits have radii of their own"),
        (
            {"threats": "e_a", "scale": scale_of("cifar10", "small_cnn")},
            "Unknown radii .*Did you mean 'e_at'",
        ),
        ({"passes": 0.0}, r"--passes: must be a finite number above 0, got 0\.0"),
        ({"overrides": (*TOY, " training.passes = 3")}, "use --passes"),
    ],
)
def test_what_cannot_be_chosen_is_one_error_before_anything_is_made(changes, words, tmp_path):
    with pytest.raises(InputError, match=words):
        reproduce(study(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"threats": "e_at"}, {"passes": 3.0}, {"split": "validation"}])
def test_the_papers_tables_are_made_at_their_radii_and_epochs(changes, tmp_path):
    table = load_reproduction("table-3")
    with pytest.raises(InputError, match="drop it"):
        reproduce(study(tmp_path, **{"reproduction": table, "passes": None, **changes}))


@pytest.mark.parametrize("reference", [{}, {"reference": "mds"}])
def test_a_study_whose_reference_is_no_row_is_refused(reference):
    fields = {"name": "s", "title": "s", "kind": "at_equal_passes", "rows": ["sat", "msd"]}
    with pytest.raises(ValidationError, match="reference: Unknown row"):
        Reproduction.model_validate(fields | reference)
