"""The benchmark of folded passes counts the layers and times a model that agrees with its own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "folding.py"


def test_the_folded_model_is_timed_beside_the_model_it_agrees_with(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_folding", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = ["--models", "small_cnn", "wrn_28_2", "--rounds", "2", "--size", "8", "--batch", "2"]
    found = module.main([*options, "--output", str(tmp_path / "folding.json")])
    assert json.loads((tmp_path / "folding.json").read_text("utf-8")) == found
    layers = [(row["folded_into_convolutions"], row["multiply_adds"]) for row in found["rows"]]
    assert layers == [(4, 0), (12, 13)]
    assert all(row["ratio"] > 0 and row["logits_apart"] < 1e-4 for row in found["rows"])
