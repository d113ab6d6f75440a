"""The smallest whole runs, and the command line called in this process."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from multirobust import cli
from multirobust.config import Recipe, load_recipe
from multirobust.experiment import Run, find_runs

SMALL = (
    "training.epochs=1",
    "training.batch_size=32",
    "training.device=cpu",
    "data.train_limit=64",
    "data.test_limit=40",
    "evaluation.limit=16",
    "model.widths=[4, 8]",
    *(f"attack.{norm}.steps=2" for norm in ("linf", "l2", "l1")),
    *(f"evaluation.attack.{norm}.steps=2" for norm in ("linf", "l2", "l1")),
)
SETTINGS = tuple(part for override in SMALL for part in ("--set", override))


class Answer(NamedTuple):
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str


def tiny_recipe(*overrides: str) -> Recipe:
    return load_recipe("digits", [*SMALL, *overrides])


@pytest.fixture
def multirobust(monkeypatch, capsys):
    """Call the command line as the shell does."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["multirobust", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder with the trained and evaluated runs of three defenses; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = ["multirobust", "run", "digits", *SETTINGS, "--output", str(folder)]
    for defense in ("adv_linf", "ant", "mng_ac"):
        arguments += ["--defense", defense]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ending:
            cli.main()
    assert not ending.value.code
    return folder


@pytest.fixture
def runs(finished, tmp_path) -> Path:
    """A copy of the finished runs, to change at will."""
    return shutil.copytree(finished, tmp_path / "runs")


@pytest.fixture
def run(runs) -> Run:
    """The finished run of adv_linf, in a copy."""
    return find_runs([runs / "adv_linf-s0"])[0]
