"""The benchmark of the fast suite runs at toy size, and its rows say what they compare."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fast_suite.py"


def test_both_suites_are_compared_image_by_image_and_nothing_is_measured_twice(finished, tmp_path):
    spec = importlib.util.spec_from_file_location("benchmark_fast_suite", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    report = tmp_path / "fast.json"
    options = ["--limit", "16", "--norms", "linf", "--json", str(report)]
    found = module.main([str(finished / "adv_linf-s0"), *options])
    assert json.loads(report.read_text("utf-8")) == found
    (row,) = found["rows"]
    assert (row["norm"], row["images"]) == ("linf", 16)
    again = module.main([str(finished / "adv_linf-s0"), *options])
    assert again["rows"] == found["rows"]
    search = ["--masked", "steps", "--searches", "2", "--queries", "20"]
    found = module.main([str(finished / "adv_linf-s0"), *options, *search])
    assert json.loads(report.read_text("utf-8")) == found
    (search,) = found["searches"]
    assert search["model"].endswith("_steps")
    assert 0 <= search["least"] <= search["most"] <= 100
    assert len(search["survived"]) == 2
