"""What is seen while an evaluation runs: on a terminal one moving line, elsewhere nothing moves."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import torch

from linear_oracles import HalfSpace
from multirobust.attacks import PGD
from multirobust.data import Split
from multirobust.evaluation import LiveDisplay, NamedAttack, State, Suite, evaluate_suite, shown
from multirobust.threats import L2, Linf


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch) -> Terminal:
    """Return a terminal of 80 columns that stands in for standard error."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    return stream


def lines(terminal: Terminal) -> list[str]:
    """Return what stood on the terminal, one after the other, without colors."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def refresh(display: LiveDisplay) -> None:
    display._progress.refresh()


def test_the_line_shows_the_attack_the_images_done_their_total_and_those_standing(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with LiveDisplay("sat-s0") as display:
        display.attack("square_linf", 1000)
        refresh(display)
        assert re.search(r"sat-s0 square_linf .* 0/1000 images 1000 stand", lines(terminal)[-1])
        display.advance(300, 120)
        display.advance(200, 150)
        refresh(display)
        assert re.search(r"500/1000 images 770 stand .* left", lines(terminal)[-1])
        display.attack("apgd_ce_l2", 770)
        refresh(display)
        assert re.search(r"sat-s0 apgd_ce_l2 .* 0/770 images 770 stand", lines(terminal)[-1])


def test_the_line_fits_a_terminal_of_80_columns_with_rate_and_time_left(monkeypatch):
    terminal = open_terminal(monkeypatch)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with LiveDisplay("sat-s0") as display:
        monkeypatch.setattr(display._progress, "get_time", lambda: now[0])
        display._progress.tasks[0]._get_time = lambda: now[0]
        display.attack("square_linf", 1000)
        for _ in range(3):
            now[0] += 2.0
            display.advance(100, 60)
        refresh(display)
        last = lines(terminal)[-1]
        assert "300/1000 images 880 stand 50.0/s 0:00:06 00:14 left" in last
        assert len(last) <= 80


def test_a_printed_line_stands_whole_above_the_moving_one(monkeypatch):
    terminal = open_terminal(monkeypatch)
    message = "[bold]no markup[/bold] " + "x" * 100
    with LiveDisplay() as display:
        display.attack("a", 10)
        display.print(message)
        refresh(display)
        assert message in lines(terminal)
        assert "0/10 images" in lines(terminal)[-1]


def test_shown_moves_on_a_terminal(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with shown("title", lambda line: None) as (display, tell):
        display.attack("a", 10)
        refresh(display)
        tell("said")
    assert any("title a" in line for line in lines(terminal))
    assert "said" in lines(terminal)


def test_where_stderr_is_no_terminal_only_what_is_told_is_printed(monkeypatch):
    stream, told = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", stream)
    with shown("title", told.append) as (display, tell):
        display.attack("a", 10)
        display.advance(10, 5)
        tell("said")
    assert stream.getvalue() == ""
    assert told == ["said"]


class Counting:
    """A display that counts what still stands."""

    def __init__(self):
        self.begun: list[tuple[str, int]] = []
        self.standing: list[int] = []
        self.done: list[int] = []

    def attack(self, name: str, images: int) -> None:
        self.begun.append((name, images))
        self.standing.append(images)
        self.done.append(0)

    def advance(self, images: int, standing: int) -> None:
        self.standing[-1] -= images - standing
        self.done[-1] += images


def test_an_evaluation_tells_its_display_what_its_outcomes_say():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (30, 1, 4, 4), generator=generator).to(torch.uint8)
    split = Split(pixels, torch.randint(0, 2, (30,), generator=generator))
    weight = torch.randn(16, generator=torch.Generator().manual_seed(0))
    model, display = HalfSpace(weight, -float(weight.sum()) / 2).eval(), Counting()
    attacks = tuple(
        NamedAttack(ball.norm, PGD(threat=ball, steps=3, step_size=ball.radius / 2))
        for ball in (Linf(0.06), L2(0.5))
    )
    outcomes = evaluate_suite(
        model,
        split,
        Suite("two", attacks),
        mode="cascade",
        block_size=8,
        display=display,
        audit=False,
    )
    states = [column.states for column in outcomes.columns]
    right = int((outcomes.predictions == outcomes.labels).sum())
    stand = [int((state == State.SURVIVED).sum()) for state in states]
    assert right > stand[0] > stand[1] > 0
    assert display.begun == [("linf", right), ("l2", stand[0])]
    assert display.done == [right, stand[0]]
    assert display.standing == stand == [int(np.sum(s == State.SURVIVED)) for s in states]
