"""Fine-tuning: what is loaded, what it is called, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from training_runs import STEPS_AN_EPOCH, outcome, small_cnn, small_digits, train

from multirobust import models
from multirobust.cli.common import recipe_of
from multirobust.config import load_recipe
from multirobust.config.finetuning import FINE_TUNING, departures
from multirobust.data import Loader
from multirobust.errors import CheckpointError, InputError, Interrupted, RunError
from multirobust.experiment import (
    evaluate_run,
    export_run,
    find_runs,
    load_data,
    open_run,
    plan,
    train_run,
)
from multirobust.models.weights import weights_digest
from multirobust.training import read_start
from tiny_runs import SETTINGS, tiny_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder of standard training, and its weights in other forms beside it."""
    folder = tmp_path_factory.mktemp("first")
    (run,) = plan(tiny_recipe("defenses=['standard']"), folder)
    train_run(run, load_data(run.recipe.data))
    state = load_file(run.folder / "model.safetensors")
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, folder / "wrapped.pt")
    return run.folder


@pytest.fixture
def start(tmp_path) -> Path:
    """Weights of the small model of these trainings, of another seed and after some steps."""
    fit = train("standard", options={"model": small_cnn(seed=4)}, epochs=1)
    torch.save(fit.model.state_dict(), tmp_path / "start.pt")
    return tmp_path / "start.pt"


def test_the_first_loss_is_that_of_the_loaded_model(start, tmp_path: Path):
    train("standard", tmp_path / "run", init_from=str(start), log_steps=1)
    model = small_cnn()
    model.load_state_dict(torch.load(start, weights_only=True))
    batch = next(iter(Loader(small_digits().train, batch_size=32, seed=0).epoch(0)))
    with torch.no_grad():
        loss = F.cross_entropy(model.train()(batch.x), batch.y)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    assert line["loss"] == loss.item()


def test_the_statistics_of_batch_norm_are_loaded_too(start):
    fit = train("standard", init_from=str(start), epochs=1, peak_lr=1e-30)
    there = torch.load(start, weights_only=True)
    counts = [name for name in there if name.endswith("num_batches_tracked")]
    assert counts
    state = fit.model.state_dict()
    assert all(state[name] == there[name] + STEPS_AN_EPOCH for name in counts)


def test_the_digest_decides_and_the_path_does_not(start, tmp_path: Path):
    train("sat", tmp_path / "undisturbed", init_from=str(start))
    with pytest.raises(Interrupted):
        train("sat", tmp_path / "run", init_from=str(start), options={"stop": [0, 1].pop})
    elsewhere = tmp_path / "elsewhere.safetensors"
    save_file(torch.load(start, weights_only=True), elsewhere)
    start.unlink()
    train("sat", tmp_path / "run", init_from=str(elsewhere))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    torch.save(small_cnn().state_dict(), tmp_path / "other.pt")
    for other in (str(tmp_path / "other.pt"), None):
        with pytest.raises(CheckpointError, match=r"training\.init_from: '\w{64}' there"):
            train("sat", tmp_path / "run", init_from=other)


def test_a_run_its_file_and_a_wrapped_checkpoint_have_one_digest(trained):
    places = (trained, trained / "model.safetensors", trained.parent / "wrapped.pt")
    assert len({read_start(place).digest for place in places}) == 1
    run = find_runs([trained])[0]
    from multirobust.experiment import load_model

    assert read_start(trained).digest == weights_digest(load_model(run, load_data(run.recipe.data)))


def tuned(trained: Path, folder: Path, *overrides: str):
    """The run that fine-tunes a trained one with another defense."""
    changes = ("defenses=['adv_linf']", f"training.init_from='{trained}'", *overrides)
    (run,) = plan(tiny_recipe(*changes), folder)
    return run, load_data(run.recipe.data)


def test_a_run_says_where_it_began_and_what_that_cost(trained, tmp_path: Path):
    first, data = tuned(trained, tmp_path / "first")
    train_run(first, data)
    facts = json.loads((first.folder / "training.json").read_text("utf-8"))["init_from"]
    made = json.loads((trained / "training.json").read_text("utf-8"))
    assert facts["path"] == str(trained)
    assert facts["digest"] == read_start(trained).digest
    assert (facts["defense"], facts["seed"], facts["data"]) == ("standard", 0, "digits")
    for name in ("seconds", "forwards", "backwards", "train_images"):
        assert facts[name] == made[name]
    second, _ = tuned(first.folder, tmp_path / "second")
    train_run(second, data)
    chain = json.loads((second.folder / "training.json").read_text("utf-8"))["init_from"]
    assert chain["defense"] == "adv_linf"
    assert chain["init_from"] == facts


def test_a_run_that_passes_ended_is_told_with_these_and_not_with_epochs(trained, tmp_path: Path):
    first, data = tuned(trained, tmp_path / "first", "training.passes=1.5")
    train_run(first, data)
    origin = read_start(first.folder).origin
    assert origin["passes"] == 1.5
    assert "epochs" not in origin
    assert origin["init_from"]["epochs"] == 1
    assert "passes" not in origin["init_from"]
    export_run(first, data)
    card = (first.folder / "export" / "README.md").read_text("utf-8")
    assert "| length | 1.5 forward-backward passes an image |" in card


def test_a_fine_tuned_run_is_found_evaluated_and_trained_again_by_its_digest(trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    run, data = tuned(moved, tmp_path / "runs")
    train_run(run, data)
    identity = json.loads((run.folder / "run.json").read_text("utf-8"))["identity"]
    assert identity["training.init_from"] == read_start(trained).digest
    same, _ = tuned(trained, tmp_path / "runs")
    open_run(same)
    shutil.rmtree(moved)
    assert find_runs([run.folder]) == [run]
    assert len(evaluate_run(run, data).labels) == 16
    with pytest.raises(InputError, match=r"training\.init_from.*may change evaluation"):
        evaluate_run(run, data, recipe=same.recipe)
    averaged, _ = tuned(trained, tmp_path / "runs", "training.ema=0.5")
    with pytest.raises(RunError, match=r"training\.ema 0\.0 there"):
        open_run(averaged)
    (scratch,) = plan(tiny_recipe("defenses=['adv_linf']"), tmp_path / "runs")
    with pytest.raises(RunError, match=r"training\.init_from '\w{64}' there, None here"):
        open_run(scratch)


def test_images_that_the_model_was_trained_on_select_nothing(trained, tmp_path: Path):
    select = ("training.select=union", "data.validation=10")
    run, data = tuned(trained, tmp_path / "seen", *select)
    with pytest.raises(InputError, match=r"must be new to the model.*64 images.*and 0 held out"):
        train_run(run, data)
    first, data = tuned(trained / "model.safetensors", tmp_path / "first", "data.validation=10")
    train_run(first, data)
    run, _ = tuned(first.folder, tmp_path / "unseen", *select)
    train_run(run, data)
    assert json.loads((run.folder / "training.json").read_text("utf-8"))["selected_epoch"] == 1
    chained, _ = tuned(trained, tmp_path / "chained", "data.validation=10")
    train_run(chained, data)
    run, _ = tuned(chained.folder, tmp_path / "last", *select)
    with pytest.raises(InputError, match="must be new to the model"):
        train_run(run, data)


class Hostile:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("missing.pt", r"training\.init_from: weights must be a file, got .*missing"),
        ("no_run", r"got '.*no_run', a folder without run\.json; name a run folder"),
        ("runs", r"a folder without run\.json; name one of the runs in it: standard-s0"),
        ("not_ended", r"a run that has ended.*has no model\.safetensors and no training\.json"),
        ("damaged_facts", r"training\.json is damaged.*name the weights in its folder"),
        ("damaged_marker", r"run\.json is damaged: it does not say which run it is"),
        ("damaged_weights", r"training\.init_from: .*no safetensors file, or damaged"),
        ("hostile.pt", r"training\.init_from: .*needs code to be run, so it was not loaded"),
        ("other_architecture.pt", r"training\.init_from: .*of another model.*same architecture"),
        ("other_widths.pt", r"training\.init_from: .*shape differs.*same architecture"),
        ("other_classes.pt", r"shape differs: head.*as many classes and channels"),
    ],
)
def test_what_cannot_be_fine_tuned_is_one_clear_error(what, told, trained, tmp_path: Path):
    place = tmp_path / what
    built = {
        "other_architecture.pt": ("preact_resnet_18", {}),
        "other_widths.pt": ("small_cnn", {"widths": (3, 8)}),
        "other_classes.pt": ("small_cnn", {"widths": (4, 8), "classes": 7}),
    }
    if what in built:
        name, options = built[what]
        model = models.build(name, **{"classes": 10, "channels": 1, **options})
        torch.save(model.state_dict(), place)
    elif what == "hostile.pt":
        torch.save(Hostile(tmp_path / "ran"), place)
    elif what in ("no_run", "runs"):
        place.mkdir()
        if what == "runs":
            shutil.copytree(trained, place / trained.name)
    elif what != "missing.pt":
        shutil.copytree(trained, place)
        spoil(place, what)
    run, data = tuned(place, tmp_path / "output")
    with pytest.raises(InputError, match=told):
        train_run(run, data)
    assert not (tmp_path / "ran").exists()
    assert not (run.folder / "checkpoint.pt").exists()


def spoil(folder: Path, how: str) -> None:
    if how == "not_ended":
        (folder / "model.safetensors").unlink()
        (folder / "training.json").unlink()
    elif how == "damaged_facts":
        (folder / "training.json").write_text("{", "utf-8")
    elif how == "damaged_marker":
        (folder / "run.json").write_text("{}", "utf-8")
    else:
        (folder / "model.safetensors").write_bytes(b"torn")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    model = small_cnn()
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    torch.save(model.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(InputError, match="finite logits"):
        train("standard", init_from=str(tmp_path / "nan.pt"))


def test_the_command_line_fine_tunes_and_names_a_missing_file(trained, tmp_path, multirobust):
    rest = (*SETTINGS, "--defense", "adv_linf", "--output", tmp_path / "runs")
    answer = multirobust("train", "digits", "--init-from", trained, *rest)
    assert answer.code == 0, answer.err
    facts = json.loads((tmp_path / "runs/adv_linf-s0/training.json").read_text("utf-8"))
    assert facts["init_from"]["defense"] == "standard"
    answer = multirobust("run", "digits", "--init-from", tmp_path / "lost.pt", *rest)
    assert answer.code != 0
    assert "training.init_from: weights must be a file" in answer.err
    assert "Traceback" not in answer.err


SCHEDULE = "training.schedule triangular (piecewise)"
RATE = ("training.schedule='cosine'", "training.peak_lr=0.1")


def published(recipe) -> dict:
    sections = [(getattr(recipe, field.split(".")[0]), field) for field in FINE_TUNING]
    return {field: getattr(section, field.split(".")[1]) for section, field in sections}


def test_a_start_from_a_model_sets_what_is_published_and_what_is_said_wins():
    start = Path("weights.pt")
    recipe = recipe_of("digits", None, ["ramp"], init_from=start)
    assert published(recipe) == {
        "training.epochs": 3,
        "training.schedule": "piecewise",
        "training.peak_lr": 0.05,
        "attack.batch_norm": "running",
        "defense.ramp_pairing": 2.0,
        "defense.ramp_projection": 0.0,
    }
    assert recipe_of("digits", None, ["ramp"], init_from=start, finetune=True) == recipe
    scratch = recipe_of("digits", None, ["ramp"], init_from=start, finetune=False)
    assert published(scratch) == published(load_recipe("digits"))
    said = ["training.epochs=5", "defense.ramp_pairing=1.5"]
    changed = recipe_of("digits", said, ["ramp"], init_from=start)
    other = {"training.epochs": 5, "defense.ramp_pairing": 1.5}
    assert published(changed) == published(recipe) | other


def test_finetune_without_a_model_to_start_from_is_one_clear_error(multirobust):
    answer = multirobust("train", "digits", "--finetune")
    assert answer.code == 2
    assert "--finetune: needs a model to start from, got none; add --init-from PATH" in answer.err


@pytest.mark.parametrize(
    ("defenses", "said", "told"),
    [
        (["e_at"], [], f"training.epochs 10 (3), {SCHEDULE}, training.peak_lr 0.21 (0.05)"),
        (["e_at"], ["training.epochs=10"], f"{SCHEDULE}, training.peak_lr 0.21 (0.05)"),
        (["e_at"], ["training.epochs=10", "training.peak_lr=0.1"], SCHEDULE),
        (["e_at"], [*RATE, "training.epochs=10"], ""),
        (["e_at"], ["training.passes=9.0"], f"{SCHEDULE}, training.peak_lr 0.21 (0.05)"),
        (["sat", "e_at"], ["training={epochs=3}"], "attack.batch_norm batch (running)"),
        (
            ["ramp"],
            ["training={epochs=3}"],
            "defense.ramp_pairing 5.0 (2.0), defense.ramp_projection 0.5 (0.0)",
        ),
    ],
)
def test_departures_are_of_fields_that_are_read_and_that_nobody_said(defenses, said, told):
    assert departures(recipe_of("digits", said, defenses), said) == told


def test_a_start_from_a_model_says_in_one_line_whose_settings_it_has(
    trained, tmp_path, multirobust
):
    rest = (*SETTINGS, "--defense", "e_at", "--init-from", trained, "--output")

    def told(*options) -> tuple[list[str], tuple[int, float]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        answer = multirobust("train", "digits", *options, *rest, folder)
        assert answer.code == 0, answer.err
        training = find_runs([folder / "e_at-s0"])[0].recipe.training
        lines = [line for line in answer.err.splitlines() if "finetun" in line]
        return lines, (training.epochs, training.peak_lr)

    tuned = [
        "Fine-tuning as published: training.schedule piecewise, training.peak_lr 0.05. "
        "--no-finetune keeps the recipe's."
    ]
    assert told() == told("--finetune") == (tuned, (1, 0.05))
    scratch = [
        f"Not as published for fine-tuning: {SCHEDULE}, training.peak_lr 0.21 (0.05). --finetune "
        "sets what is in brackets."
    ]
    assert told("--no-finetune") == (scratch, (1, 0.21))
