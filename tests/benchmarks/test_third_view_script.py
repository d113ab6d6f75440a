"""The benchmark of third views runs at toy size, and goes on where it stopped."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from tiny_runs import SMALL

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "third_view.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_third_view", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_variant_has_fewer_passes_than_learned_noise(script, tmp_path):
    report = tmp_path / "found.json"
    options = ["--variants", "learned", "none", "--seeds", "0"]
    options += ["--output", str(tmp_path / "runs"), "--json", str(report)]
    options += [part for text in SMALL for part in ("--set", text)]
    found = script.main(options)
    assert json.loads(report.read_text("utf-8")) == found
    rows = {row["variant"]: row for row in found["rows"]}
    passes = {name: row["forwards"] + row["backwards"] for name, row in rows.items()}
    assert passes["learned"] == pytest.approx(2 * 2 + 11)
    assert passes["learned"] <= passes["none"] < passes["learned"] + 2
    assert all(0 <= row["union"] <= row["clean"] <= 100 for row in rows.values())
    assert found["less_learned"].keys() == {"none"}
    assert script.main(options)["rows"] == found["rows"]


def test_differences_are_taken_seed_by_seed_with_the_interval_of_student(script):
    """Gaps 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(2) = 4.30265."""
    rows = [{"variant": "learned", "seed": seed, "union": 10.0 * seed} for seed in range(3)]
    rows += [{"variant": "none", "seed": s, "union": 10.0 * s + s + 1} for s in range(3)]
    rows += [{"variant": "none", "seed": 9, "union": 0.0}]  # no partner
    (found,) = script.differences(rows).values()
    assert (found["mean"], found["seeds"]) == (2, 3)
    assert found["half"] == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
