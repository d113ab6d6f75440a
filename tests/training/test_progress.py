"""What is seen while a run trains."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from multirobust.training import LiveDisplay, PlainDisplay, Silent, Status, display_for

STATUS = Status(
    step=30,
    steps=100,
    epoch=3,
    epochs=10,
    lr=0.1575,
    images_per_second=1234.4,
    backwards=14.33,
    seconds_left=3725,
    terms={"loss": 1.23456, "consistency": 0.05},
)
SHOWN = (
    *("epoch 3/10", "step 30/100", "loss 1.235", "consistency 0.050", "lr 0.1575"),
    *("1234 images/s", "14.3 passes/image", "1:02:05 left"),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_no_more_often_than_asked():
    stream, now = io.StringIO(), [100.0]
    display = PlainDisplay(stream, every=10, clock=lambda: now[0])
    display.start("sat", STATUS)
    for seconds in (101, 109.9, 110, 111, 119.9, 121):
        now[0] = seconds
        display.update(STATUS)
    display.finish("trained in 21 s")
    first, *middle, last = stream.getvalue().splitlines()
    assert first == "sat: 100 steps, resumed at step 30"
    assert middle == [f"sat: {STATUS}"] * 2
    assert last == "sat: trained in 21 s"


def test_a_plain_line_has_everything():
    stream = io.StringIO()
    display = PlainDisplay(stream, every=0)
    display.start("sat", STATUS)
    display.update(STATUS)
    for part in SHOWN:
        assert part in stream.getvalue()


def test_where_the_passes_end_a_training_its_steps_are_estimates():
    stream = io.StringIO()
    display = PlainDisplay(stream, every=0)
    unknown = replace(STATUS, step=0, steps=0, epochs=0, passes=430.0)
    display.start("sat", unknown)
    display.update(replace(STATUS, passes=430.0))
    first, second = stream.getvalue().splitlines()
    assert first == "sat: 430 passes/image"
    assert second.startswith("sat: epoch 3/~10  step 30/~100  loss 1.235")
    assert (unknown.share, STATUS.share) == (0, 0.3)


def test_a_reader_that_went_away_does_not_end_the_training():
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    PlainDisplay(Broken()).finish("done")


@pytest.mark.parametrize("columns", ["80", "160"])
def test_the_live_display_shows_everything_also_on_a_narrow_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    display = LiveDisplay(stream)
    display.start("run [a] :smile:", STATUS)
    display.update(STATUS)
    shown = " ".join(stream.getvalue().split())
    display.finish("trained [in] 21 s")
    for part in (*SHOWN, "run [a] :smile:", "30 %"):
        assert part in shown
    assert "run [a] :smile:: trained [in] 21 s" in stream.getvalue()


def test_a_terminal_gets_the_live_display_and_a_pipe_plain_lines():
    assert isinstance(display_for(Terminal()), LiveDisplay)
    assert isinstance(display_for(io.StringIO()), PlainDisplay)
    terminal = Terminal()
    assert display_for(terminal).stream is terminal


def test_silence_shows_nothing(capfd: pytest.CaptureFixture[str]):
    display = Silent()
    display.start("sat", STATUS)
    display.update(STATUS)
    display.finish("done")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "clock"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (90061, "25:01:01")]
)
def test_the_time_left_is_a_clock(seconds: float, clock: str):
    text = str(Status(0, 1, 1, 1, 0.0, 0.0, 0.0, seconds))
    assert text.endswith(f"{clock} left")
    assert "   " not in text
