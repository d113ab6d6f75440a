"""Out of memory in the middle of an epoch: one error that says what to lower, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_runs import STEPS_AN_EPOCH, outcome, train

from multirobust.errors import TrainingError
from multirobust.training import load_checkpoint
from multirobust.training.runtime import Runtime

ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee docs."),
    "CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    "Python": MemoryError(),
}


def fail_at(monkeypatch, call: int, error: Exception) -> None:
    """Raise at the n-th backward pass of the loss: after the generator has taken its step."""
    backward = Runtime.backward

    def failing(self, loss):
        nonlocal call
        call -= 1
        if call == 0:
            raise error
        backward(self, loss)

    monkeypatch.setattr(Runtime, "backward", failing)


@pytest.mark.parametrize("kind", ERRORS)
def test_memory_that_runs_out_within_a_step_costs_steps_and_no_bits(kind: str, tmp_path: Path):
    train("mng_ac", tmp_path / "undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, STEPS_AN_EPOCH + 2, ERRORS[kind])
        with pytest.raises(TrainingError, match=r"training\.batch_size 32.*the same command goes"):
            train("mng_ac", tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")["step"] == STEPS_AN_EPOCH
    train("mng_ac", tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")


def test_memory_that_runs_out_in_the_first_step_is_told_too(tmp_path: Path, monkeypatch):
    fail_at(monkeypatch, 1, ERRORS["CUDA"])
    with pytest.raises(TrainingError) as caught:
        train("standard", tmp_path / "run")
    assert "Tried to allocate 2.00 GiB." in str(caught.value)
    assert "See docs" not in str(caught.value)
    assert load_checkpoint(tmp_path / "run") is None


def test_another_error_is_not_taken_for_want_of_memory(tmp_path: Path, monkeypatch):
    fail_at(monkeypatch, 1, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        train("standard", tmp_path)


@pytest.mark.parametrize("kind", ERRORS)
def test_the_command_line_says_it_in_one_line_wherever_it_happens(
    kind: str, multirobust, monkeypatch
):
    from multirobust import experiment

    def prepare(*arguments):
        raise ERRORS[kind]

    monkeypatch.setattr(experiment, "prepare", prepare)
    answer = multirobust("train", "digits")
    assert answer.code == 1
    assert answer.err.startswith("Error: out of memory")
    assert "Traceback" not in answer.err
    assert len(answer.err.splitlines()) == 1
