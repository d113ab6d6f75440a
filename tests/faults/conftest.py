"""How long the fault tests last, and one small run that faults are tried on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from multirobust.experiment import evaluate_run, prepare, train_run
from tiny_runs import tiny_recipe

LONG = os.environ.get("MULTIROBUST_FAULTS") == "long"
QUICK = (
    *("defenses=['standard']", "evaluation.block_size=4"),
    *("data.train_limit=300", "training.epochs=6"),
)


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether everything is tried, as `make soak` does, or a part of it."""
    return LONG


@pytest.fixture(scope="session")
def _one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    ((run,), data) = prepare(tiny_recipe(*QUICK), folder)
    train_run(run, data)
    evaluate_run(run, data)
    return run.folder


@pytest.fixture
def one(_one, tmp_path) -> Path:
    """A trained and evaluated run, in a copy to spoil at will."""
    return shutil.copytree(_one, tmp_path / "runs" / "standard-s0")
