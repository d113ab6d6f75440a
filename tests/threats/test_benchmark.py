"""The benchmark of the projections runs at toy size, and its two claims hold there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "projection.py"


@pytest.fixture
def benchmark_main():
    spec = importlib.util.spec_from_file_location("benchmark_projection", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_project_then_clip_loses_budget_that_the_exact_projection_keeps(benchmark_main, tmp_path):
    images, report = tmp_path / "images.npy", tmp_path / "rows.json"
    np.save(images, np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8))
    arguments = ["--repeats", "1", "--batch", "2", "--sizes", "8"]
    rows = benchmark_main([*arguments, "--images", str(images), "--json", str(report)])
    assert json.loads(report.read_text()) == rows
    assert {row["images"] for row in rows["budget"]} == {"uniform 8", "images"}
    assert all(row["times a sort"] > 0 for row in rows["time"])
    for row in rows["budget"][1::2]:  # those of the noise, which all leave the ball
        assert row["exact: distance / radius"] == pytest.approx(1, abs=1e-5)
        assert row["then clip: distance / radius"] < 1
