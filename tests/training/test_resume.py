"""A stopped and resumed training is the undisturbed one, bit for bit."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from training_runs import STEPS_AN_EPOCH, StopAt, outcome, small_digits, train

from multirobust.defenses import DEFENSES
from multirobust.errors import CheckpointError, Interrupted
from multirobust.training import load_checkpoint, save_checkpoint


@pytest.mark.parametrize("defense", sorted(DEFENSES))
def test_every_defense_stopped_twice_ends_as_if_undisturbed(defense: str, tmp_path: Path):
    train(defense, tmp_path / "undisturbed", epochs=2)
    for steps in (2, 3):
        with pytest.raises(Interrupted, match="Run the same command again"):
            train(defense, tmp_path / "stopped", epochs=2, options={"stop": StopAt(steps)})
    train(defense, tmp_path / "stopped", epochs=2)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("stop", "log_steps"),
    [
        *((1, 2), (1, 100), (STEPS_AN_EPOCH, 1), (STEPS_AN_EPOCH, 2), (STEPS_AN_EPOCH + 1, 2)),
        *((STEPS_AN_EPOCH + 1, 5), (3 * STEPS_AN_EPOCH - 1, 2), (3 * STEPS_AN_EPOCH - 1, 100)),
    ],
)
def test_stop_and_resume_at_any_step_with_any_log_interval(
    stop: int, log_steps: int, tmp_path: Path
):
    train("sat", tmp_path / "undisturbed", log_steps=log_steps)
    with pytest.raises(Interrupted):
        train("sat", tmp_path / "stopped", log_steps=log_steps, options={"stop": StopAt(stop)})
    assert load_checkpoint(tmp_path / "stopped")["step"] == stop
    train("sat", tmp_path / "stopped", log_steps=log_steps)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "undisturbed")


def test_images_may_move_between_device_and_host_when_a_training_is_resumed(tmp_path: Path):
    train("mng_ac", tmp_path / "undisturbed")
    for placement, steps in (("host", 2), ("device", 2), ("host", 3)):
        options = {"data": replace(small_digits(), placement=placement), "stop": StopAt(steps)}
        with pytest.raises(Interrupted):
            train("mng_ac", tmp_path / "stopped", options=options)
        assert not [t for t in threading.enumerate() if t.name.startswith("multirobust-images")]
    train(
        "mng_ac", tmp_path / "stopped", options={"data": replace(small_digits(), placement="host")}
    )
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "undisturbed")


def test_saving_often_changes_no_bit(tmp_path: Path):
    train("mng_ac", tmp_path / "seldom")
    train("mng_ac", tmp_path / "often", checkpoint_seconds=0)
    assert outcome(tmp_path / "often") == outcome(tmp_path / "seldom")


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_resume_is_exact_in_every_precision(precision: str, tmp_path: Path):
    train("mng_ac", tmp_path / "undisturbed", precision=precision)
    with pytest.raises(Interrupted):
        train("mng_ac", tmp_path / "stopped", precision=precision, options={"stop": StopAt(4)})
    train("mng_ac", tmp_path / "stopped", precision=precision)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "undisturbed")


def test_stop_after_the_last_step_is_a_finished_run(tmp_path: Path):
    fit = train("standard", tmp_path, options={"stop": StopAt(3 * STEPS_AN_EPOCH)})
    assert fit.steps == 3 * STEPS_AN_EPOCH


def test_a_finished_run_takes_no_step_and_returns_the_same_fit(tmp_path: Path):
    first = train("mng_ac", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def stop() -> bool:
        raise AssertionError("a step was taken")

    second = train("mng_ac", tmp_path, options={"stop": stop})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for name in ("seconds", "steps", "forwards", "backwards", "device"):
        assert getattr(second, name) == getattr(first, name)
    assert not second.model.training
    for a, b in ((first.model, second.model), (first.defense, second.defense)):
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            assert x.equal(y)


def test_lines_beyond_the_checkpoint_and_torn_lines_are_written_anew(tmp_path: Path):
    train("standard", tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        train("standard", tmp_path / "killed", options={"stop": StopAt(4)})
    for name in ("metrics.jsonl", "timing.jsonl"):
        with (tmp_path / "killed" / name).open("a") as stream:
            stream.write(json.dumps({"step": 5, "loss": 9.0}) + '\n{"step": 6, "lo')
    train("standard", tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "undisturbed")
    timing = (tmp_path / "killed/timing.jsonl").read_text("utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in timing]
    assert steps == sorted(set(steps))


def test_a_damaged_newest_checkpoint_costs_steps_and_no_bits(tmp_path: Path):
    train("mng_ac", tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        train("mng_ac", tmp_path / "damaged", options={"stop": StopAt(7)})
    newest = tmp_path / "damaged" / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"truncated.*Going on from .*previous"):
        train("mng_ac", tmp_path / "damaged")
    assert outcome(tmp_path / "damaged") == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("training", "options", "named"),
    [
        ({"epochs": 4}, {}, "training.epochs: 3 there, 4 here"),
        ({"batch_size": 16}, {}, "training.batch_size: 32 there, 16 here"),
        ({}, {"seed": 1}, "seed: 0 there, 1 here"),
        ({}, {"batch_norm": "running"}, "batch_norm: 'batch' there, 'running' here"),
        ({}, {"identity": {"a": {"b": [1, 3]}}}, r"run.a.b: \[1, 2\] there, \[1, 3\] here"),
        ({}, {"identity": {}}, r"run.a.b: \[1, 2\] there, nothing here"),
    ],
)
def test_a_run_with_other_settings_is_not_continued(training, options, named, tmp_path: Path):
    same = {"identity": {"a": {"b": (1, 2)}}}
    train("standard", tmp_path, options=same)
    with pytest.raises(CheckpointError, match=named):
        train("standard", tmp_path, options=same | options, **training)


def aged(folder: Path) -> None:
    """Make of the checkpoint one that was written before some fields were there."""
    content = load_checkpoint(folder)
    for field in ("passes", "ema", "select", "select_epochs", "gradient_clip", "label_smoothing"):
        del content["identity"]["training"][field]
    del content["identity"]["run"]["b"]
    save_checkpoint(folder, content)


def test_a_checkpoint_from_before_a_field_is_continued_with_its_default(tmp_path: Path):
    options = {"identity": {"a": 1, "b": 2}, "defaults": {"a": 7, "b": 2}}
    train("sat", tmp_path / "undisturbed", options=options)
    with pytest.raises(Interrupted):
        train("sat", tmp_path / "old", options=options | {"stop": StopAt(4)})
    aged(tmp_path / "old")
    train("sat", tmp_path / "old", options=options)
    assert outcome(tmp_path / "old") == outcome(tmp_path / "undisturbed")


def test_a_checkpoint_from_before_a_field_is_not_continued_with_another_value(tmp_path: Path):
    options = {"identity": {"a": 1, "b": 2}, "defaults": {"b": 2}}
    train("standard", tmp_path, options=options)
    aged(tmp_path)
    with pytest.raises(CheckpointError, match=r"\(training.label_smoothing: 0.0 there, 0.1 here\)"):
        train("standard", tmp_path, options=options, label_smoothing=0.1)
    with pytest.raises(CheckpointError, match=r"\(run.b: 2 there, 3 here\)"):
        train("standard", tmp_path, options=options | {"identity": {"a": 1, "b": 3}})


def test_another_model_is_not_continued(tmp_path: Path):
    train("mng_ac", tmp_path)
    with pytest.raises(CheckpointError, match="does not fit this model and defense"):
        train("standard", tmp_path)


def test_device_and_checkpoint_interval_may_change(tmp_path: Path):
    train("standard", tmp_path)
    assert train("standard", tmp_path, device="auto", checkpoint_seconds=1).steps == 9
