"""Ctrl-C and SIGTERM on the command line: what is saved, what is said, which exit code."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from multirobust.evaluation.runner import Runner
from multirobust.training import load_checkpoint
from multirobust.training.loop import Loop
from tiny_runs import SETTINGS

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _handlers_are_put_back():
    before = [signal.getsignal(sign) for sign in SIGNALS]
    yield
    assert [signal.getsignal(sign) for sign in SIGNALS] == before


@pytest.fixture(autouse=True)
def heard():
    """Let Ctrl-C be heard where a shell started the tests in the background, and so ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def signal_at(monkeypatch, owner: type, function: str, call: int, *signs: signal.Signals) -> None:
    """Send signals to this process at the n-th call of a method."""
    original = getattr(owner, function)

    def called(self, *arguments):
        nonlocal call
        call -= 1
        if call == 0:
            for sign in signs:
                os.kill(os.getpid(), sign)
        return original(self, *arguments)

    monkeypatch.setattr(owner, function, called)


@pytest.mark.parametrize("sign", SIGNALS)
def test_an_evaluation_that_is_interrupted_keeps_its_blocks(
    sign: signal.Signals, one: Path, multirobust, monkeypatch
):
    folder = one / "evaluation" / "quick"
    table = (folder / "outcomes.parquet").read_bytes()
    (folder / "outcomes.json").unlink()
    with monkeypatch.context() as patch:
        signal_at(patch, Runner, "attack", 4, sign)
        answer = multirobust("evaluate", one)
    assert answer.code == 1
    assert "Interrupted; what is finished is kept" in answer.err
    assert "Traceback" not in answer.err
    assert len(list((folder / "partial").glob("*.npz"))) == 3
    assert multirobust("evaluate", one).code == 0
    assert (folder / "outcomes.parquet").read_bytes() == table


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("sign", SIGNALS)
def test_a_training_that_is_asked_to_stop_saves_and_a_second_time_ends_at_once(
    sign: signal.Signals, times: int, multirobust, monkeypatch, tmp_path: Path
):
    command = ("train", "digits", *SETTINGS, "--defense", "standard")
    assert multirobust(*command, "--output", tmp_path / "undisturbed").code == 0
    with monkeypatch.context() as patch:
        signal_at(patch, Loop, "_train_step", 1, *[sign] * times)
        answer = multirobust(*command, "--output", tmp_path / "run")
    assert answer.code == 1
    assert "Interrupted" in answer.err
    assert "Traceback" not in answer.err
    found = load_checkpoint(tmp_path / "run" / "standard-s0")
    assert (found and found["step"]) == (1 if times == 1 else None)
    assert multirobust(*command, "--output", tmp_path / "run").code == 0
    weights = "standard-s0/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (
        tmp_path / "undisturbed" / weights
    ).read_bytes()
