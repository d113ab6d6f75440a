from __future__ import annotations

import json

import pytest

from multirobust.config import load_recipe
from multirobust.errors import InputError, RunError
from multirobust.experiment import Run, find_runs, open_run, plan
from multirobust.experiment.runs import identity
from tiny_runs import tiny_recipe


def changed(*overrides: str) -> dict[str, tuple]:
    ours, theirs = (identity(tiny_recipe(*o), "sat", 0) for o in ((), overrides))
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "summary=other",
        "defenses=['ant']",
        "seeds=[7]",
        "evaluation.limit=3",
        "evaluation.attack.restarts=5",
        "data.test_limit=7",
        "data.download=true",
        "training.checkpoint_seconds=1",
        "training.device=auto",
    ],
)
def test_what_does_not_change_the_weights_is_no_other_run(override):
    assert changed(override) == {}


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("data.train_limit=63", "data.train_limit"),
        ("data.validation=5", "data.validation"),
        ("model.widths=[4, 9]", "model.widths"),
        ("threats.l2=0.1", "threats.l2"),
        ("attack.l1.steps=9", "attack.l1"),
        ("attack.batch_norm=running", "attack.batch_norm"),
        ("defense.beta=1.5", "defense.beta"),
        ("training.epochs=2", "training.epochs"),
        ("training.precision=bf16-mixed", "training.precision"),
        ("training.ema=0.5", "training.ema"),
        ("training.gradient_clip=2.0", "training.gradient_clip"),
        ("training.label_smoothing=0.1", "training.label_smoothing"),
        ("training.select_epochs=2", "training.select_epochs"),
    ],
)
def test_what_changes_the_weights_is_another_run(override, field):
    assert list(changed(override)) == [field]


def test_every_field_of_a_recipe_is_in_the_identity_or_named_as_not():
    facts = identity(tiny_recipe(), "sat", 3)
    assert facts["defense"] == "sat"
    assert facts["seed"] == 3
    assert json.loads(json.dumps(facts)) == facts


def test_a_plan_has_every_defense_with_every_seed(tmp_path):
    recipe = tiny_recipe("defenses=['sat', 'ant']", "seeds=[0, 4]")
    runs = plan(recipe, tmp_path)
    assert [run.name for run in runs] == ["sat-s0", "ant-s0", "sat-s4", "ant-s4"]
    assert all(run.folder == tmp_path / run.name for run in runs)
    assert list(tmp_path.iterdir()) == []


def a_run(folder, *overrides: str, defense: str = "sat", seed: int = 0) -> Run:
    return Run(folder / "run", tiny_recipe(*overrides), defense, seed)


def test_an_opened_run_is_found_again_as_it_was(tmp_path):
    run = a_run(tmp_path)
    open_run(run)
    assert find_runs([run.folder]) == [run]
    assert find_runs([tmp_path, run.folder]) == [run]
    assert load_recipe(run.folder / "recipe.toml") == run.recipe
    assert not run.trained


def test_opening_twice_changes_nothing(tmp_path):
    open_run(a_run(tmp_path))
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    open_run(a_run(tmp_path, "evaluation.limit=3"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_what_only_plus_reads_makes_no_other_run_another(tmp_path):
    open_run(a_run(tmp_path / "sat"))
    open_run(a_run(tmp_path / "sat", "defense.plus_beta=0.5"))
    open_run(a_run(tmp_path / "plus", defense="plus"))
    with pytest.raises(RunError, match=r"defense\.plus_beta 12\.0 there, 0\.5 here"):
        open_run(a_run(tmp_path / "plus", "defense.plus_beta=0.5", defense="plus"))


def test_a_folder_of_another_run_is_refused_with_the_difference(tmp_path):
    open_run(a_run(tmp_path))
    with pytest.raises(RunError, match=r"another run \(training\.epochs 1 there, 5 here\); choose"):
        open_run(a_run(tmp_path, "training.epochs=5"))
    with pytest.raises(RunError, match=r"\(defense 'sat' there, 'ant' here, seed 0 there, 1 here"):
        open_run(a_run(tmp_path, defense="ant", seed=1))


def of_an_older_version(folder, *fields: str) -> None:
    """Take fields out of the identity of a run, and out of its recipe."""
    marker = folder / "run" / "run.json"
    content = json.loads(marker.read_text("utf-8"))
    for field in fields:
        del content["identity"][field]
    marker.write_text(json.dumps(content), "utf-8")
    recipe = folder / "run" / "recipe.toml"
    names = {field.rpartition(".")[2] for field in fields}
    lines = recipe.read_text("utf-8").splitlines(keepends=True)
    recipe.write_text("".join(s for s in lines if s.partition(" = ")[0] not in names), "utf-8")


NEW = ("training.ema", "training.select", "training.gradient_clip", "training.label_smoothing")


def test_fields_that_a_stored_run_does_not_know_have_their_defaults(tmp_path):
    run = a_run(tmp_path)
    open_run(run)
    of_an_older_version(tmp_path, *NEW, "attack.restarts")
    before = (tmp_path / "run" / "run.json").read_bytes()
    open_run(run)
    assert find_runs([tmp_path]) == [run]
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.ema=0.99", r"training\.ema 0\.0 there, 0\.99 here"),
        ("training.gradient_clip=1.0", r"training\.gradient_clip None there, 1\.0 here"),
        ("attack.restarts=2", r"attack\.restarts 1 there, 2 here"),
    ],
)
def test_a_field_that_a_stored_run_does_not_know_may_not_be_set_now(override, told, tmp_path):
    open_run(a_run(tmp_path))
    of_an_older_version(tmp_path, *NEW, "attack.restarts")
    with pytest.raises(RunError, match=rf"another run \({told}\); choose"):
        open_run(a_run(tmp_path, override))
    section, field, value = override.replace("=", ".", 1).split(".", 2)
    recipe = tmp_path / "run" / "recipe.toml"
    text = recipe.read_text("utf-8")
    text = text.replace(f"[{section}]\n", f"[{section}]\n{field} = {value}\n")
    recipe.write_text(text, "utf-8")
    with pytest.raises(RunError, match=rf"changed after the run was made \({told.split()[0]}\)"):
        find_runs([tmp_path])


def test_a_field_within_a_field_that_a_stored_run_does_not_know_has_its_default(tmp_path):
    open_run(a_run(tmp_path, "attack.linf.step_size=0.01"))
    marker = tmp_path / "run" / "run.json"
    content = json.loads(marker.read_text("utf-8"))
    del content["identity"]["attack.linf"]["steps"]
    marker.write_text(json.dumps(content), "utf-8")
    with pytest.raises(RunError, match=r"attack\.linf {'steps': 10, 'step_size': 0\.01} there"):
        open_run(a_run(tmp_path, "attack.linf.step_size=0.01"))
    open_run(a_run(tmp_path, "attack.linf.step_size=0.01", "attack.linf.steps=10"))


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(RunError, match="holds other files and no run; choose another --output"):
        open_run(a_run(tmp_path))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_run_that_was_killed_while_it_was_made_can_be_made(tmp_path):
    open_run(a_run(tmp_path))
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / ".run.json.0123.tmp").write_text("torn", "utf-8")
    open_run(a_run(tmp_path))
    assert find_runs([tmp_path]) == [a_run(tmp_path)]


def test_a_recipe_of_someone_else_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("name = 'mine'", "utf-8")
    with pytest.raises(RunError, match="holds other files"):
        open_run(a_run(tmp_path))


@pytest.mark.parametrize("where", ["file/run", "/proc/run", "x" * 300])
def test_a_folder_that_cannot_be_written_is_one_error(tmp_path, where):
    (tmp_path / "file").write_text("a file", "utf-8")
    with pytest.raises(RunError, match=r"cannot be written: .*; choose another --output"):
        open_run(Run(tmp_path / where, tiny_recipe(), "sat", 0))


def test_runs_come_in_the_order_of_the_paper(tmp_path):
    recipe = tiny_recipe("defenses=['mng_ac', 'standard', 'adv_max']", "seeds=[1, 0]")
    for run in plan(recipe, tmp_path):
        open_run(run)
    names = [run.name for run in find_runs([tmp_path])]
    assert names == [f"{d}-s{s}" for d in ("standard", "adv_max", "mng_ac") for s in (0, 1)]


@pytest.mark.parametrize("path", ["", "missing", "file", "x" * 300])
def test_where_no_run_is_is_told(tmp_path, path):
    (tmp_path / "file").write_text("", "utf-8")
    told = r"holds no run; name a folder|cannot be read: File name"
    with pytest.raises((InputError, RunError), match=told):
        find_runs([tmp_path / path])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("run.json", "{", r"run\.json is damaged or cannot be read"),
        ("run.json", "[]", r"run\.json is damaged: it holds a list"),
        ("run.json", "{}", r"run\.json is damaged: it does not say which run"),
        ("run.json", '{"identity": {"defense": "sat"}}', "does not say which run it is"),
        (
            "run.json",
            '{"identity": {"defense": "sat_2", "seed": 0}}',
            r"Unknown defense: 'sat_2'\. Did you mean 'sat(_ac)?'\? .*Use the version that made it",
        ),
        ("recipe.toml", "[[", r"recipe\.toml is damaged or of another version: .*not valid TOML"),
        ("recipe.toml", "new = 1", r"of another version: new: no such field"),
        ("recipe.toml", None, r"recipe\.toml is damaged .*cannot be read"),
    ],
)
def test_a_damaged_run_folder_is_one_clear_error(tmp_path, name, content, told):
    open_run(a_run(tmp_path))
    path = tmp_path / "run" / name
    path.unlink() if content is None else path.write_text(content, "utf-8")
    with pytest.raises(RunError, match=told):
        find_runs([tmp_path])


def test_a_recipe_that_was_edited_after_the_training_is_told(tmp_path):
    open_run(a_run(tmp_path))
    path = tmp_path / "run" / "recipe.toml"
    path.write_text(path.read_text("utf-8").replace("\nepochs = 1", "\nepochs = 9"), "utf-8")
    with pytest.raises(RunError, match=r"changed after the run was made \(training\.epochs\)"):
        find_runs([tmp_path])
