"""The benchmark of Auto-PGD runs at toy size, and counts the passes that it compares with."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "apgd.py"


def test_the_attack_is_compared_with_as_many_passes_as_it_takes(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_apgd", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    report = tmp_path / "rows.json"
    arguments = ["--models", "small_cnn", "--batch", "2", "--size", "8", "--repeats", "1"]
    result = module.main(["passes", *arguments, "--iterations", "4", "--json", str(report)])
    assert json.loads(report.read_text()) == result
    assert [row["norm"] for row in result["rows"]] == ["linf", "l2", "l1"]
    assert all(row["passes_an_image"] == 4 for row in result["rows"])
    assert all(row["ratio"] > 0 for row in result["rows"])
    assert "ratio" in capsys.readouterr().out
