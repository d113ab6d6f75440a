"""A disk that is full or read-only: one clear error, the last good state intact, and then on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_runs import outcome, train

from multirobust import evaluation
from multirobust.errors import RunError
from multirobust.experiment import evaluate_all, find_runs
from multirobust.training import load_checkpoint

SIZES = [0, 300, 3000, 20000]


@contextlib.contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Let the operating system refuse every byte of a file beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Take from this thread what lets root write anywhere (Linux's capabilities), and give it back.

    Others than root have no such thing, and nothing happens.
    """
    if os.geteuid():
        yield
        return
    system, head, kept = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), _Capabilities()
    if system.capget(head, ctypes.byref(kept)):
        pytest.skip("the capabilities of root cannot be read")
    without = _Capabilities(*kept)
    without[0] = 0  # the effective ones, the lower 32
    if system.capset(head, ctypes.byref(without)):
        pytest.skip("the capabilities of root cannot be given up")
    try:
        yield
    finally:
        assert system.capset(head, ctypes.byref(kept)) == 0


_Capabilities = ctypes.c_uint32 * 6


@contextlib.contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    modes = {folder: folder.stat().st_mode for folder in folders}
    for folder in folders:
        folder.chmod(0o555)
    try:
        with ordinary_user():
            yield
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("size", SIZES)
def test_a_training_that_the_system_refuses_to_write_goes_on_later(size: int, tmp_path: Path):
    train("sat", tmp_path / "undisturbed", checkpoint_seconds=0)
    with files_no_longer_than(size), pytest.raises(RunError, match="cannot be written"):
        train("sat", tmp_path / "run", checkpoint_seconds=0)
    assert not list((tmp_path / "run").glob("*.tmp"))
    train("sat", tmp_path / "run", checkpoint_seconds=0)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")


def test_a_disk_that_fills_up_halfway_leaves_the_last_checkpoint(tmp_path: Path):
    train("sat", tmp_path / "undisturbed", checkpoint_seconds=0)
    steps = 0

    def filling() -> bool:
        nonlocal steps
        steps += 1
        if steps == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        return False

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with files_no_longer_than(unlimited[0]), pytest.raises(RunError, match="cannot be written"):
        train("sat", tmp_path / "run", checkpoint_seconds=0, options={"stop": filling})
    assert load_checkpoint(tmp_path / "run")["step"] == 3
    train("sat", tmp_path / "run", checkpoint_seconds=0)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize("size", [0, 700, 1500])
def test_an_evaluation_that_the_system_refuses_to_write_goes_on_later(size: int, one: Path):
    folder = one / "evaluation" / "quick"
    table = (folder / "outcomes.parquet").read_bytes()
    (folder / "outcomes.json").unlink()
    (folder / "outcomes.parquet").unlink()
    with files_no_longer_than(size), pytest.raises(RunError, match="cannot be written"):
        evaluate_all(find_runs([one]))
    assert not list(one.rglob("*.tmp"))
    evaluate_all(find_runs([one]))
    assert (folder / "outcomes.parquet").read_bytes() == table
    assert not (folder / "partial").exists()


@pytest.mark.parametrize("began", [False, True])
def test_a_training_in_a_read_only_folder_is_one_error_and_goes_on_later(
    began: bool, tmp_path: Path
):
    train("sat", tmp_path / "undisturbed")
    folder = tmp_path / "outer" / "run"
    folder.mkdir(parents=True)
    if began:
        with pytest.raises(Exception, match="Interrupted at step 1"):
            train("sat", folder, options={"stop": lambda: True})
    before = everything(folder)
    places = [folder, folder / "tensorboard"] if began else [folder]
    with read_only(*places), pytest.raises(RunError, match=r"written: Permission denied\. "):
        train("sat", folder)
    assert everything(folder) == before
    train("sat", folder)
    assert outcome(folder) == outcome(tmp_path / "undisturbed")


def test_a_folder_that_turns_read_only_while_training_keeps_its_checkpoint(tmp_path: Path):
    train("sat", tmp_path / "undisturbed", checkpoint_seconds=0)
    steps, folder = 0, tmp_path / "run"

    def turning() -> bool:
        nonlocal steps
        steps += 1
        if steps == 4:
            folder.chmod(0o555)
        return False

    with ordinary_user(), pytest.raises(RunError, match="Permission denied"):
        train("sat", folder, checkpoint_seconds=0, options={"stop": turning})
    folder.chmod(0o755)
    assert load_checkpoint(folder)["step"] == 3
    train("sat", folder, checkpoint_seconds=0)
    assert outcome(folder) == outcome(tmp_path / "undisturbed")


def test_a_read_only_archive_can_be_read_and_reported_but_not_written(
    one: Path, multirobust, tmp_path: Path
):
    before = everything(one)
    folders = [one, *(path for path in one.rglob("*") if path.is_dir())]
    with read_only(*folders):
        assert multirobust("compare", one).code == 0
        assert "already evaluated" in multirobust("evaluate", one).err
        answer = multirobust("evaluate", one, "--limit", 3)
        assert answer.code == 1
        assert answer.err.splitlines()[-1].startswith("Error: ")
        assert "Permission denied" in answer.err
        answer = multirobust("report", one, "--images", 0, "--output", one / "report.html")
        assert (answer.code, "cannot be written" in answer.err) == (1, True)
    assert everything(one) == before
    assert evaluation.load(one / "evaluation" / "quick")
