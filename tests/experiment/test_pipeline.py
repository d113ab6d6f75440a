from __future__ import annotations

import json
import math

import pytest
import torch

from multirobust import evaluation
from multirobust.config import load_recipe
from multirobust.errors import InputError, Interrupted, RunError
from multirobust.experiment import (
    Run,
    build_model,
    evaluate_run,
    find_runs,
    load_data,
    load_defense,
    load_model,
    plan,
    prepare,
    result_of,
    train_all,
    train_run,
)
from tiny_runs import tiny_recipe


@pytest.fixture(scope="module")
def data():
    return load_data(tiny_recipe().data)


def test_the_passes_of_a_training_are_those_of_the_closed_form(finished):
    facts = json.loads((finished / "adv_linf-s0" / "training.json").read_text("utf-8"))
    recipe = load_recipe(finished / "adv_linf-s0" / "recipe.toml")
    passes = (recipe.attack.linf.steps + 1) * recipe.training.epochs
    assert facts["forwards"] == facts["backwards"] == passes
    assert facts["train_images"] == 64
    assert facts["steps"] == math.ceil(64 / 32) * recipe.training.epochs
    assert facts["seconds"] > 0
    assert {"versions", "commit", "device", "time"} <= set(facts)


def test_the_weights_that_are_loaded_are_those_that_were_trained(tmp_path, data, monkeypatch):
    from multirobust import training

    trained = []

    def keep(*arguments, **options):
        trained.append(training.trainer.fit(*arguments, **options))
        return trained[-1]

    monkeypatch.setattr(training, "fit", keep)
    (run,) = plan(tiny_recipe("defenses=['mng_ac']"), tmp_path)
    train_run(run, data)
    x = data.test.floats()
    model = load_model(run, data)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(x), trained[0].model(x))
        assert not torch.equal(model(x), build_model(run.recipe, data, run.seed).eval()(x))
    theirs = trained[0].defense.noise.state_dict()
    for name, value in load_defense(run, data).noise.state_dict().items():
        assert torch.equal(value, theirs[name])


def test_a_trained_run_is_not_trained_again(run, data, monkeypatch):
    monkeypatch.setattr("multirobust.training.fit", lambda *a, **o: 1 / 0)
    train_run(run, data)


@pytest.mark.parametrize("name", ["model.safetensors", "defense.safetensors", "training.json"])
def test_a_lost_result_is_made_anew_from_the_last_checkpoint(run, data, name):
    before = (run.folder / name).read_bytes()
    (run.folder / name).unlink()
    assert not run.trained
    train_run(run, data)
    if name == "training.json":
        ours, theirs = json.loads((run.folder / name).read_bytes()), json.loads(before)
        assert ours["seconds"] == theirs["seconds"]
    else:
        assert (run.folder / name).read_bytes() == before


def test_the_outcomes_are_those_of_the_model_on_the_images(run, data):
    outcomes = evaluate_run(run, data)
    model = load_model(run, data)
    with torch.no_grad():
        predictions = model(data.test.floats(slice(16))).argmax(dim=1)
    assert outcomes.predictions.tolist() == predictions.tolist()
    assert outcomes.labels.tolist() == data.test.labels[:16].tolist()


def stored(run: Run) -> set[str]:
    return {path.name for path in (run.folder / "evaluation").iterdir()}


def again(run: Run, *overrides: str):
    return load_recipe(run.folder / "recipe.toml", overrides)


def test_an_evaluation_is_read_back_only_if_all_that_matters_is_the_same(run, data, monkeypatch):
    calls = []
    original = evaluation.evaluate_suite
    monkeypatch.setattr(
        evaluation, "evaluate_suite", lambda *a, **o: calls.append(1) or original(*a, **o)
    )
    first = evaluate_run(run, data)
    evaluate_run(run, data, recipe=again(run, "name=x", "training.device=auto"))
    assert calls == []
    for changes in (
        ["threats.linf=0.3"],
        ["evaluation.attack.l1.steps=1"],
        ["evaluation.attack.restarts=1"],
        ["evaluation.limit=4"],
        ["evaluation.batch_size=5"],
    ):
        before = len(calls)
        outcomes = evaluate_run(run, data, recipe=again(run, *changes))
        assert len(calls) == before + 1, changes
        assert evaluate_run(run, data, recipe=again(run, *changes)) == outcomes
        assert len(calls) == before + 1, changes
    evaluate_run(run, data, seed=1)
    assert len(calls) == 6
    assert evaluate_run(run, data) == first
    assert len(stored(run)) == 7


def test_a_radius_that_is_said_and_one_of_the_preset_are_the_same(run, data):
    radius = evaluate_run(run, data).columns[0].radius
    lines: list[str] = []
    recipe = again(run, f"threats.linf={radius}")
    evaluate_run(run, data, recipe=recipe, report=lines.append)
    assert lines == ["already evaluated with these settings"]


def test_a_changed_evaluation_says_what_it_is_and_what_the_model_is(run, data):
    outcomes = evaluate_run(run, data, recipe=again(run, "threats.l2=0.01", "evaluation.limit=4"))
    facts = outcomes.manifest
    assert facts["evaluation"]["limit"] == facts["images"] == 4
    assert facts["evaluation"]["threats"]["l2"] == "L2(radius=0.01)"
    assert facts["recipe"] == run.recipe.model_dump(mode="json", exclude_none=True)
    assert outcomes.columns[1].radius == 0.01


def test_new_weights_are_evaluated_anew(run, data):
    old = evaluate_run(run, data)
    other = build_model(run.recipe, data, seed=9)
    from safetensors.torch import save_file

    save_file(other.state_dict(), run.folder / "model.safetensors")
    with pytest.raises(RunError, match="evaluated with other weights than it has now"):
        result_of(run)
    new = evaluate_run(run, data)
    assert new.manifest["weights"] != old.manifest["weights"]
    assert result_of(run).outcomes == new


@pytest.mark.parametrize("name", ["outcomes.json", "outcomes.parquet"])
def test_damaged_outcomes_are_made_anew(run, data, name):
    whole = evaluate_run(run, data)
    path = run.folder / "evaluation" / "quick" / name
    path.write_bytes(path.read_bytes()[:-9])
    lines: list[str] = []
    made = evaluate_run(run, data, report=lines.append)
    assert "evaluated again, since the stored outcomes cannot be used" in lines[0]
    assert made.columns[0].states.tolist() == whole.columns[0].states.tolist()
    assert result_of(run).outcomes == made


def test_the_validation_images_have_an_evaluation_of_their_own(tmp_path):
    recipe = tiny_recipe("data.validation=20", "defenses=['standard']")
    (run,), data = prepare(recipe, tmp_path)
    train_run(run, data)
    outcomes = evaluate_run(run, data, split="validation")
    assert outcomes.labels.tolist() == data.validation.labels[:16].tolist()
    assert outcomes.manifest["evaluation"]["split"] == "validation"
    assert stored(run) == {"quick-validation"}
    with pytest.raises(RunError, match="no evaluation 'quick'"):
        result_of(run)
    assert result_of(run, "quick-validation").outcomes == outcomes


@pytest.mark.parametrize("split", ["validation", "train"])
def test_images_that_are_not_there_are_told(run, data, split):
    with pytest.raises(InputError, match="split: must be 'test', or 'validation' for a run that"):
        evaluate_run(run, data, split=split)


def test_a_recipe_that_changes_the_model_is_refused(run, data):
    with pytest.raises(InputError, match=r"model\.widths: an evaluation may change evaluation\.\*"):
        evaluate_run(run, data, recipe=again(run, "model.widths=[5]"))


def test_an_untrained_run_cannot_be_evaluated_or_compared(tmp_path):
    (run,), data = prepare(tiny_recipe("defenses=['sat']"), tmp_path)
    with pytest.raises(RunError, match="has not finished training"):
        evaluate_run(run, data)
    with pytest.raises(RunError, match="has not finished training"):
        result_of(run)


def test_a_result_has_what_the_tables_need(finished):
    result = result_of(find_runs([finished])[0])
    assert (result.name, result.seed, len(result.outcomes)) == ("adv_linf", 0, 16)
    assert result.forwards == 3
    assert result.training_seconds > 0


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"seconds": "long"}'])
def test_a_damaged_training_json_is_one_clear_error(run, content):
    (run.folder / "training.json").write_text(content, "utf-8")
    with pytest.raises(RunError, match=r"training\.json is damaged.*its last checkpoint makes it"):
        result_of(run)


@pytest.mark.parametrize("name", ["model.safetensors", "defense.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_damaged_weights_are_one_clear_error(runs, data, name, damage):
    run = find_runs([runs / "mng_ac-s0"])[0]
    path = run.folder / name
    if damage == "foreign":
        from safetensors.torch import save_file

        save_file({"w": torch.zeros(3)}, path)
    else:
        path.write_bytes(path.read_bytes()[:-50] if damage == "cut" else b"")
    loader = load_model if name == "model.safetensors" else load_defense
    with pytest.raises(RunError, match=rf"{name} is (damaged|of another model).*checkpoint makes"):
        loader(run, data)


def test_a_request_to_stop_between_two_runs_leaves_the_second(tmp_path):
    runs, data = prepare(tiny_recipe("defenses=['standard', 'sat']"), tmp_path)
    asked = iter([False] * 2)
    with pytest.raises(Interrupted, match="run the same command again"):
        train_all(runs, data, stop=lambda: next(asked, True))
    assert [run.trained for run in runs] == [True, False]
    lines: list[str] = []
    train_all(runs, data, tell=lines.append)
    assert lines == [f"standard-s0: already trained in {runs[0].folder}"]
    assert runs[1].trained
