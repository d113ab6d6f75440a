"""Checkpoints: whole or not at all, never trusted, never silently missing."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multirobust.errors import CheckpointError, RunError
from multirobust.training import load_checkpoint, save_checkpoint
from multirobust.training.checkpoint import MAGIC

NAMES = ("checkpoint.next.pt", "checkpoint.pt", "checkpoint.previous.pt")


def content(step: int) -> dict:
    return {"step": step, "weights": torch.full((3,), float(step))}


def saved(folder: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(folder, content(step))
    return folder


def step_of(folder: Path) -> int:
    found = load_checkpoint(folder)
    assert found is not None
    assert found["weights"].eq(found["step"]).all()
    return found["step"]


def sealed(payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def test_an_empty_folder_and_a_missing_one_hold_no_checkpoint(tmp_path: Path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "missing") is None


def test_the_newest_is_loaded_and_the_one_before_stays(tmp_path: Path):
    saved(tmp_path, 1, 2, 3)
    assert step_of(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES[1:])
    (tmp_path / "checkpoint.pt").unlink()
    assert step_of(tmp_path) == 2


@settings(max_examples=20, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_newest_cut_anywhere_gives_a_warning_and_the_one_before(cut, tmp_path_factory):
    folder = saved(tmp_path_factory.mktemp("run"), 1, 2)
    newest = folder / "checkpoint.pt"
    data = newest.read_bytes()
    newest.write_bytes(data[: int(cut * len(data))])
    with pytest.warns(UserWarning, match=r"checkpoint\.pt .*Going on from .*previous"):
        assert step_of(folder) == 1


@settings(max_examples=20, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(place, flip, tmp_path_factory):
    folder = saved(tmp_path_factory.mktemp("run"), 1)
    newest = folder / "checkpoint.pt"
    data = bytearray(newest.read_bytes())
    data[int(place * len(data))] ^= flip
    newest.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="remove the folder to start anew"):
        load_checkpoint(folder)


def test_both_damaged_is_one_error_that_names_both(tmp_path: Path):
    saved(tmp_path, 1, 2)
    for name in NAMES[1:]:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is trunc.*previous\.pt is trunc"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"\x00" * 500,
        bytes(range(256)) * 40,
        pickle.dumps({"step": 1}),
        MAGIC,
        sealed(b""),
        sealed(b"not what torch.save writes"),
        sealed(pickle.dumps({"step": 1})[:-3]),
        sealed(pickle.dumps([1, 2])),
    ],
)
def test_a_foreign_file_is_an_error_and_not_a_new_start(foreign: bytes, tmp_path: Path):
    (tmp_path / "checkpoint.pt").write_bytes(foreign)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)


def test_a_folder_in_its_place_is_an_error(tmp_path: Path):
    (tmp_path / "checkpoint.pt").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_does_not_run(tmp_path: Path):
    buffer = io.BytesIO()
    torch.save({"step": Bomb(tmp_path / "exploded")}, buffer)
    for payload in (buffer.getvalue(), pickle.dumps(Bomb(tmp_path / "exploded"))):
        (tmp_path / "checkpoint.pt").write_bytes(sealed(payload))
        with pytest.raises(CheckpointError, match="never loaded"):
            load_checkpoint(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_what_could_not_be_loaded_is_not_saved_over_what_could(tmp_path: Path):
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match="more than tensors"):
        save_checkpoint(tmp_path, {"step": Bomb(tmp_path / "exploded")})
    assert step_of(tmp_path) == 1


@pytest.mark.parametrize("leftover", ["whole", "torn"])
def test_a_leftover_of_a_killed_save_is_used_if_whole(leftover: str, tmp_path: Path):
    newer, folder = tmp_path / "newer", tmp_path / "run"
    newer.mkdir()
    folder.mkdir()
    saved(newer, 3)
    saved(folder, 1, 2)
    data = (newer / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.next.pt").write_bytes(data if leftover == "whole" else data[:200])
    if leftover == "whole":
        assert step_of(folder) == 3
    else:
        with pytest.warns(UserWarning, match="next"):
            assert step_of(folder) == 2
    saved(folder, 4)
    assert step_of(folder) == 4
    assert not (folder / "checkpoint.next.pt").exists()


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_around_any_rename_leaves_the_old_or_the_new(
    when: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Crash(BaseException):
        pass

    calls = 0
    replace = os.replace

    def crashing(*names):
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            raise Crash
        replace(*names)
        if calls == call:
            raise Crash

    saved(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crashing)
        with pytest.raises(Crash):
            save_checkpoint(tmp_path, content(3))
    assert step_of(tmp_path) == (2 if (call, when) == (1, "before") else 3)
    saved(tmp_path, 4)
    assert step_of(tmp_path) == 4


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_refused_rename_is_one_error_and_nothing_is_lost(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = 0
    replace = os.replace

    def refusing(*names):
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*names)

    saved(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refusing)
        with pytest.raises(RunError, match="No space left"):
            save_checkpoint(tmp_path, content(3))
    assert step_of(tmp_path) in (2, 3)


def test_a_full_disk_is_one_error_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    saved(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left"):
            save_checkpoint(tmp_path, content(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_of(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES[1:])
