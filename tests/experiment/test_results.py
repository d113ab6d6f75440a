"""What tables are made of: runs, folders of outcomes, folders of these, record files."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from multirobust.errors import DataError, InputError, RunError
from multirobust.evaluation import AttackColumn, Outcomes, load, save
from multirobust.experiment import outcomes_at, results_of
from multirobust.report import write_record


def made(name: str | None = None, images: int = 6) -> Outcomes:
    """Outcomes that no run of ours made."""
    states = np.arange(images) % 2
    column = AttackColumn("a", "linf", 0.1, states, np.zeros(images))
    labels = np.zeros(images, int)
    manifest = {} if name is None else {"name": name}
    return Outcomes(np.arange(images), labels, labels, (column,), manifest)


def names(results) -> list[str]:
    return [result.name for result in results]


def test_a_run_its_folder_of_outcomes_and_its_record_have_the_same_outcomes(runs, tmp_path):
    (run,) = results_of([runs / "ant-s0"])
    (folder,) = results_of([runs / "ant-s0" / "evaluation" / "quick"])
    write_record([run], tmp_path / "record.json")
    (record,) = results_of([tmp_path / "record.json"])
    for other in (folder, record):
        assert (other.name, other.seed) == (run.name, run.seed) == ("ant", 0)
        assert other.outcomes.predictions.tolist() == run.outcomes.predictions.tolist()
        for ours, theirs in zip(other.outcomes.columns, run.outcomes.columns, strict=True):
            assert ours.states.tolist() == theirs.states.tolist()
    assert record.training_seconds == run.training_seconds > 0
    assert folder.training_seconds is None


def test_outcomes_are_called_by_their_manifest_or_else_by_their_folder(tmp_path):
    save(made("resnet"), tmp_path / "a")
    save(made(), tmp_path / "b")
    assert names(results_of([tmp_path])) == ["resnet", "b"]
    assert names(results_of([tmp_path / "b", tmp_path / "a"])) == ["b", "resnet"]


def test_a_folder_of_runs_and_of_outcomes_gives_both(runs):
    save(made("resnet"), runs / "mine")
    assert names(results_of([runs])) == ["adv_linf", "ant", "mng_ac", "resnet"]


def test_evaluations_of_one_model_are_told_apart_by_their_folders(runs):
    quick = runs / "ant-s0" / "evaluation" / "quick"
    save(load(quick), quick.with_name("small"))
    assert names(results_of([quick.parent])) == ["ant (quick)", "ant (small)"]
    mixed = results_of([runs / "ant-s0", quick.with_name("small"), runs / "mng_ac-s0"])
    assert names(mixed) == ["ant", "ant (small)", "mng_ac"]


def test_seeds_of_one_defense_keep_its_name(runs):
    quick = runs / "ant-s0" / "evaluation" / "quick"
    outcomes = load(quick)
    run = {**outcomes.manifest["run"], "training_seed": 7}
    save(replace(outcomes, manifest={**outcomes.manifest, "run": run}), quick.with_name("other"))
    found = results_of([quick.parent])
    assert [(result.name, result.seed) for result in found] == [("ant", 7), ("ant", 0)]


def test_the_suite_names_the_evaluation_of_a_run(runs):
    quick = runs / "ant-s0" / "evaluation" / "quick"
    manifest = {**load(quick).manifest, "note": "small"}
    save(replace(load(quick), manifest=manifest), quick.with_name("small"))
    assert outcomes_at(runs / "ant-s0", "small").manifest["note"] == "small"
    assert "note" not in outcomes_at(runs / "ant-s0").manifest


def test_a_path_of_several_evaluations_is_no_evaluation(runs):
    with pytest.raises(RunError, match=r"holds 3 evaluations: adv_linf \(seed 0\), ant .*Name one"):
        outcomes_at(runs)


@pytest.mark.parametrize("kind", ["missing", "empty", "text"])
def test_a_path_of_nothing_is_one_clear_error(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "empty":
        path.mkdir()
    if kind == "text":
        path.write_text("x", "utf-8")
    with pytest.raises(InputError, match="holds no run"):
        results_of([path])


def test_damaged_outcomes_are_one_clear_error(runs):
    quick = runs / "ant-s0" / "evaluation" / "quick"
    shutil.copy(runs / "mng_ac-s0" / "evaluation" / "quick" / "outcomes.parquet", quick)
    with pytest.raises(DataError, match="checksum"):
        results_of([quick])
