"""A run folder has one process and one identity; what the disk refuses is one error."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path

import pytest
from training_runs import outcome, train

from multirobust.errors import InputError, Interrupted, RunError
from multirobust.training import load_checkpoint
from multirobust.training.run_folder import difference, exclusive, plain


def test_a_second_training_in_the_same_folder_is_refused(tmp_path: Path):
    with exclusive(tmp_path), pytest.raises(RunError, match="another process trains"):
        train("standard", tmp_path)
    train("standard", tmp_path)


def test_the_folder_is_made(tmp_path: Path):
    train("standard", tmp_path / "a" / "b")
    assert load_checkpoint(tmp_path / "a" / "b") is not None


def test_a_file_in_place_of_the_folder_is_one_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="Choose a writable --output"):
            train("standard", folder)


def test_a_log_that_cannot_be_opened_is_one_error(tmp_path: Path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match="metrics cannot be written"):
        train("standard", tmp_path)


def test_a_disk_that_fills_up_while_training_is_one_error_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saves = 0
    fsync = os.fsync

    def filling(descriptor: int) -> None:
        nonlocal saves
        saves += 1
        if saves > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        with pytest.raises(RunError, match="No space left on device"):
            train("sat", tmp_path / "full", checkpoint_seconds=0)
    assert load_checkpoint(tmp_path / "full")["step"] >= 1
    train("sat", tmp_path / "full")
    train("sat", tmp_path / "undisturbed")
    assert outcome(tmp_path / "full") == outcome(tmp_path / "undisturbed")


def test_a_refused_temporary_file_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Interrupted):
        train("standard", tmp_path, options={"stop": lambda: True})
    original = builtins.open

    def refusing(file, mode="r", *rest, **options):
        if "x" in mode:
            raise OSError(errno.EROFS, "Read-only file system")
        return original(file, mode, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refusing)
        with pytest.raises(RunError, match="Read-only"):
            train("standard", tmp_path)
    assert load_checkpoint(tmp_path)["step"] == 1


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), Path("a"), io.BytesIO()])
def test_an_identity_that_a_checkpoint_could_not_hold_is_refused_at_once(value, tmp_path: Path):
    with pytest.raises(InputError, match="identity: must hold only"):
        train("standard", tmp_path, options={"identity": {"a": value}})


def test_a_difference_names_the_innermost_fields():
    theirs = plain({"same": 1, "a": {"b": 1, "c": (1, 2)}, "gone": None})
    ours = plain({"same": 1, "a": {"b": 2, "c": [1, 2], "d": "x"}})
    assert difference(theirs, ours) == (
        "a.b: 1 there, 2 here, gone: None there, nothing here, a.d: nothing there, 'x' here"
    )
