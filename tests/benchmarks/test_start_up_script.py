"""The benchmark of the start of a training splits all of the time, and stops after one step."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "start_up.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_start_up", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_parts_add_up_to_the_time_from_the_command_to_the_first_step(script, tmp_path):
    small = ["--set", "data.train_limit=40", "--set", "model.widths=[4]", "--rounds", "1"]
    found = script.main([*small, "--output", str(tmp_path / "start_up.json")])
    assert json.loads((tmp_path / "start_up.json").read_text("utf-8")) == found
    seconds = found["after"]["seconds"]
    assert all(seconds[name] > 0 for name in script.PARTS)
    assert sum(seconds[name] for name in script.SPLIT) == pytest.approx(seconds["total"], abs=0.01)
    assert "torch" in found["after"]["imports_by_package"]
    assert "sklearn" not in found["after"]["imports_by_package"]


def test_a_training_that_takes_no_step_is_an_error(script):
    with pytest.raises(SystemExit, match=r"(?s)took no step.*Unknown defense"):
        script.main(["--defense", "nothing", "--rounds", "1"])
