"""The benchmark of mixed Auto-PGD runs at toy size and compares equal numbers of passes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mixed_apgd.py"


def test_the_attack_is_compared_with_as_many_passes_as_it_takes(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_mixed_apgd", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    report = tmp_path / "rows.json"
    arguments = ["--models", "small_cnn", "--batch", "6", "--size", "8", "--repeats", "1"]
    result = module.main([*arguments, "--steps", "3", "--json", str(report)])
    assert json.loads(report.read_text()) == result
    (row,) = result["rows"]
    assert (row["forwards"], row["backwards"]) == (4, 3)
    assert row["ratio"] > 0
    assert "ratio" in capsys.readouterr().out
