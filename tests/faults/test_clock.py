"""A clock that jumps back and forth by years: the bits and the durations do not notice."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
from training_runs import outcome, train

from multirobust import evaluation
from multirobust.experiment import evaluate_all, find_runs
from multirobust.files import atomic_write

YEARS = 10 * 365 * 86400.0


@pytest.fixture
def jumping(monkeypatch):
    """A clock of the day that is years off, in turn into the past and into the future."""
    now, jumps = time.time, itertools.cycle([-YEARS, YEARS, 0.0])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))


def test_a_training_has_the_same_bits_and_a_sound_duration(tmp_path: Path, request):
    train("mng_ac", tmp_path / "undisturbed", checkpoint_seconds=0)
    request.getfixturevalue("jumping")
    begun = time.monotonic()
    fit = train("mng_ac", tmp_path / "run", checkpoint_seconds=0)
    assert 0 < fit.seconds <= time.monotonic() - begun
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    lines = (tmp_path / "run" / "timing.jsonl").read_text("utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert all(json.loads(line)["images_per_second"] > 0 for line in lines)


@pytest.mark.usefixtures("jumping")
def test_checkpoints_are_written_by_a_clock_that_does_not_jump(tmp_path: Path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "multirobust.training.loop.save_checkpoint", lambda folder, content: saved.append(1)
    )
    train("standard", tmp_path, checkpoint_seconds=600)
    assert len(saved) == 3, "one an epoch, none in between"


@pytest.mark.usefixtures("jumping")
def test_an_evaluation_has_the_same_outcomes_and_sound_durations(one: Path):
    folder = one / "evaluation" / "quick"
    table = (folder / "outcomes.parquet").read_bytes()
    (folder / "outcomes.json").unlink()
    begun = time.monotonic()
    evaluate_all(find_runs([one]))
    assert (folder / "outcomes.parquet").read_bytes() == table
    columns = evaluation.load(folder).columns
    assert all(column.seconds > 0 for column in columns)
    assert sum(column.seconds for column in columns) < time.monotonic() - begun


@pytest.mark.parametrize("jump", [-YEARS, YEARS])
def test_a_file_is_written_though_the_clock_jumps_meanwhile(jump, tmp_path: Path, monkeypatch):
    now = time.time

    def write(stream):
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        stream.write(b"new")

    (tmp_path / "file").write_bytes(b"old")
    atomic_write(tmp_path / "file", write)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"
