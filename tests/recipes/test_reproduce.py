"""Every table and figure made at toy size, interrupted and continued, and by the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from multirobust import catalog
from multirobust.errors import DataError, InputError, Interrupted
from multirobust.recipes import (
    Progress,
    Reproduction,
    Study,
    load_reproduction,
    reproduce,
    scale_of,
)
from multirobust.training import read_start

TOY = (
    "training.epochs=1",
    "training.batch_size=32",
    "training.device=cpu",
    "data.train_limit=64",
    "data.test_limit=60",
    "model.widths=[4, 8]",
    *(f"attack.{norm}.steps=2" for norm in ("linf", "l2", "l1")),
    *(f"evaluation.attack.{norm}.steps=2" for norm in ("linf", "l2", "l1")),
)
FEW = {
    "table-1": ("quick", 8, ()),
    "table-2": ("quick", 8, ()),
    "table-4": (None, 4, ()),
    "figure-2": ("quick", 8, ()),
    "figure-4": ("quick", 8, ()),
    "breakdown": ("quick", 4, ("mng_ac",)),
    "unforeseen": ("spatial", 4, ("mng_ac",)),
    "cifar10-c": (None, 4, ("mng_ac",)),
    "choose-the-attack": ("quick", 4, ("e_at",)),
}
"""Suites of minutes are tested on their own: here others that fill the same table."""

STUDIES = ("choose-the-attack",)
"""What ends its trainings by passes."""


def study(name: str, output: Path, **changes: object) -> Study:
    suite, limit, defenses = FEW.get(name, (None, 8, ()))
    toy = (*TOY, "data.validation=8") if name in STUDIES else TOY
    settings = {"suite": suite, "limit": limit, "defenses": defenses, "overrides": toy}
    settings |= {"scale": scale_of("digits"), "seeds": (0,), **changes}
    return Study(reproduction=load_reproduction(name), output=output, **settings)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One folder for all tables: models that they share are trained once."""
    return tmp_path_factory.mktemp("reproduce")


@pytest.mark.parametrize("name", catalog.REPRODUCTIONS)
def test_every_table_and_figure_is_made_from_nothing(name, shared):
    made = study(name, shared, labeled=40, passes=3.0 if name in STUDIES else None)
    product = reproduce(made)
    paths = product.write(shared / "out", name, command="multirobust reproduce")
    assert product.title in str(product)
    assert product.table.rows
    assert all(path.stat().st_size > 0 for path in paths)
    content = json.loads((shared / "out" / f"{name}.json").read_text("utf-8"))
    assert content["command"] == "multirobust reproduce"
    assert str(shared) not in json.dumps(content)
    if name.startswith("figure") or name in ("table-5", *STUDIES):
        assert "<svg" in (shared / "out" / f"{name}.svg").read_text("utf-8")


def test_a_made_table_is_read_back_and_not_made_again(shared):
    first = reproduce(study("table-3", shared))
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("model.safetensors")}
    lines: list[str] = []
    again = reproduce(study("table-3", shared), Progress(tell=lines.append))
    assert str(again) == str(first)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [line for line in lines if "already evaluated" in line]
    assert not [line for line in lines if "survive" in line]


def test_an_interrupted_table_goes_on_and_ends_as_an_uninterrupted_one(tmp_path):
    whole = reproduce(study("table-3", tmp_path / "whole", suite="quick"))
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked % 3 == 0

    interruptions = 0
    while True:
        try:
            product = reproduce(
                study("table-3", tmp_path / "parts", suite="quick"), Progress(stop=stop)
            )
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= 2
    assert [run.outcomes.columns[0].states.tolist() for run in product.results] == [
        run.outcomes.columns[0].states.tolist() for run in whole.results
    ]
    models = [sorted(folder.rglob("model.safetensors")) for folder in tmp_path.iterdir()]
    assert len(models[0]) == len(models[1]) == 3
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*models, strict=True))


def test_pseudo_labels_come_from_a_model_and_labeled_images_are_as_few_as_said(shared):
    made = study("table-2", shared, overrides=tuple(o for o in TOY if "train_limit" not in o))
    reproduce(made)
    folder = made.folder / "labeled-300"
    facts = {
        path.parent.name: json.loads(path.read_text("utf-8"))
        for path in folder.glob("*/training.json")
    }
    assert set(facts) == {"standard-s0", "rst_linf-s0", "mng_ac-s0", "mng_ac_rst-s0"}
    assert {fact["train_images"] for fact in facts.values()} == {300}
    assert (folder / "pseudo-labels.npz").is_file()


def fine_tuned(output: Path, **changes: object) -> Study:
    """A table whose first row starts from its second, and that from its third."""
    rows = (
        {"name": "last", "defense": "e_at", "init_from": "middle"},
        {"name": "middle", "defense": "adv_l1", "init_from": "first"},
        {"name": "first", "defense": "adv_linf", "changes": ["training.epochs=2"]},
    )
    base = load_reproduction("table-3").model_dump(exclude={"published"})
    table = Reproduction.model_validate({**base, "name": "tuned", "rows": rows})
    return replace(study("table-3", output, suite="quick", **changes), reproduction=table)


def test_a_row_that_starts_from_another_is_trained_after_it(tmp_path):
    made = fine_tuned(tmp_path, seeds=(0, 1))
    product = reproduce(made)
    assert [(run.name, run.seed) for run in product.results] == [
        (name, seed) for name in ("last", "middle", "first") for seed in (0, 1)
    ]
    place = made.folder
    chain = {"from-middle": "from-first/adv_l1", "from-first": "training.epochs-2/adv_linf"}
    for folder, source in chain.items():
        for path in (place / folder).glob("*/training.json"):
            facts, seed = json.loads(path.read_text("utf-8")), path.parent.name[-1]
            assert facts["init_from"]["path"] == str(place / f"{source}-s{seed}")
            weights = read_start(place / f"{source}-s{seed}").digest
            assert facts["init_from"]["digest"] == weights
    assert len(list(place.rglob("training.json"))) == 6
    lines: list[str] = []
    assert str(reproduce(fine_tuned(tmp_path, seeds=(0, 1)), Progress(tell=lines.append))) == str(
        product
    )
    assert not [line for line in lines if "survive" in line]


def test_a_chosen_row_trains_what_it_starts_from_and_shows_it_not(tmp_path):
    product = reproduce(fine_tuned(tmp_path, defenses=("adv_l1",)))
    assert [run.name for run in product.results] == ["middle"]
    trained = {path.parent.name for path in tmp_path.rglob("training.json")}
    assert trained == {"adv_l1-s0", "adv_linf-s0"}


def test_an_interrupted_fine_tuning_goes_on_and_ends_as_an_uninterrupted_one(tmp_path):
    reproduce(fine_tuned(tmp_path / "whole"))
    for stops in (5, 2):
        asked = iter([*[False] * stops, True])
        with pytest.raises(Interrupted):
            reproduce(
                fine_tuned(tmp_path / "parts"), Progress(stop=lambda asked=asked: next(asked))
            )
    reproduce(fine_tuned(tmp_path / "parts"))
    models = [sorted(folder.rglob("model.safetensors")) for folder in tmp_path.iterdir()]
    assert len(models[0]) == len(models[1]) == 3
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*models, strict=True))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"a": "b", "b": "a"}, "start from each other: a from b from a"),
        ({"a": "a"}, "start from each other: a from a"),
        ({"a": "bb", "b": None}, r"row 'a': init_from: Unknown row: 'bb'\. Did you mean 'b'\?"),
    ],
)
def test_rows_that_start_from_each_other_or_from_none_are_refused(rows, words):
    made = [{"name": n, "defense": "sat", "init_from": source} for n, source in rows.items()]
    fields = {"name": "t", "title": "t", "kind": "comparison", "rows": made}
    with pytest.raises(ValidationError, match=words):
        Reproduction.model_validate(fields)


def test_a_row_starts_from_one_that_trains_on_the_same_images():
    rows = [
        {"name": "a", "defense": "rst_linf", "unlabeled": True, "init_from": "b"},
        {"name": "b", "defense": "trades"},
    ]
    fields = {"name": "t", "title": "t", "kind": "comparison", "rows": rows}
    with pytest.raises(ValidationError, match="must be that of 'b', which trains without"):
        Reproduction.model_validate(fields)


def test_data_that_are_not_there_are_one_error_that_says_how_to_get_them(tmp_path):
    there = study("table-3", tmp_path, scale=scale_of("svhn"), overrides=("data.folder='none'",))
    with pytest.raises(DataError, match=r"--set data\.folder=PATH.*--set data\.download=true"):
        reproduce(there)
    assert not list(tmp_path.iterdir())


def test_unlabeled_images_that_are_not_named_are_one_error_that_says_how(tmp_path):
    with pytest.raises(InputError, match="multirobust pseudo-label"):
        reproduce(study("table-2", tmp_path, scale=scale_of("svhn"), overrides=()))


def test_labels_that_leave_nothing_to_pseudo_label_are_one_error(tmp_path):
    with pytest.raises(InputError, match=r"below data\.train_limit, 64, .* got 300"):
        reproduce(study("table-2", tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_defense_that_is_no_row_is_one_error_that_lists_the_rows(tmp_path):
    with pytest.raises(InputError, match="mng_ac, sat, sat_ac"):
        reproduce(study("table-3", tmp_path, defenses=("ant",)))


def test_the_command_prints_the_table_and_says_what_it_wrote(multirobust, tmp_path):
    settings = [part for override in TOY for part in ("--set", override)]
    answer = multirobust(
        "reproduce", "table-3", "--seeds", 1, "--limit", 8, "--defense", "sat",
        "--output", tmp_path, *settings,
    )  # fmt: skip
    assert answer.code == 0
    assert "Table 3" in answer.out
    assert "· paper" in answer.out
    assert (tmp_path / "digits-small_cnn" / "table-3.md").is_file()
    assert "table-3.json" in answer.err


def test_the_command_refuses_an_unknown_target_with_exit_code_2(multirobust):
    answer = multirobust("reproduce", "table-9")
    assert answer.code == 2
    assert "table-1" in answer.err
