"""The benchmark of the noise generator runs at toy size, and says what it compared."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from multirobust.threats import BALL_MAPS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "generator.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_generator", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_map_is_measured_and_every_step_compared(script, tmp_path, capsys):
    report = tmp_path / "generator.json"
    options = ["--steps", "2", "--batch", "8", "--seeds", "0", "1", "--repeats", "1"]
    options += ["--norms", "linf", "--maps", "project", "straight_through", "--rates", "5"]
    options += ["--set", "attack.linf={steps=1, step_size=0.1}", "--output", str(report)]
    result = script.main(options)
    assert json.loads(report.read_text("utf-8")) == result
    maps = {(row["norm"], row["map"]): row for row in result["maps"]}
    assert set(maps) == {(norm, name) for norm in ("linf", "l2", "l1") for name in BALL_MAPS}
    assert all(row["live"] == 1 for (_, name), row in maps.items() if name != "project")
    assert maps["linf", "project"]["live"] < 0.03
    assert all(0 < row["reach"] <= 1 + 1e-6 for row in maps.values())
    hard, through = result["steps"]
    assert (hard["map"], through["map"]) == ("project", "straight_through")
    assert through["live"]["mean"] > hard["live"]["mean"]
    for gain in script.GAINS:
        assert len(hard[gain]["values"]) == 2
        assert math.isfinite(hard[gain]["half"])
    assert "straight_through" in capsys.readouterr().out


def test_the_interval_is_that_of_student(script):
    """Of 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(2) = 4.30265."""
    found = script.interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["half"] == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert script.interval([4.0])["half"] is None


def test_evenness_is_one_for_equal_entries_and_one_part_for_a_single_one(script):
    torch = script.torch
    assert script.evenness(torch.tensor([2.0, -2.0, 2.0])) == pytest.approx(1)
    assert script.evenness(torch.tensor([0.0, 0.0, 5.0, 0.0])) == pytest.approx(0.25)
