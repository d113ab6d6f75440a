"""Ctrl-C and a polite kill are requests to stop; the second one ends at once."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from training_runs import outcome, train

from multirobust.errors import Interrupted
from multirobust.training import stop_on_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_ends(number: int):
    before = signal.getsignal(number)
    with stop_on_interrupt() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_nothing_is_ever_asked():
    answers: list[bool] = []

    def ask() -> None:
        with stop_on_interrupt() as stop:
            answers.append(stop())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_within_a_step_saves_or_ends_and_the_run_goes_on(times: int, tmp_path: Path):
    class Pressing:
        """A display that presses Ctrl-C at its first update."""

        def start(self, title, status) -> None: ...

        def update(self, status) -> None:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

        def finish(self, text) -> None: ...

    expected = {1: Interrupted, 2: KeyboardInterrupt}[times]
    with stop_on_interrupt() as stop, pytest.raises(expected):
        train("sat", tmp_path / "run", options={"stop": stop, "display": Pressing()})
    train("sat", tmp_path / "run")
    train("sat", tmp_path / "undisturbed")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
