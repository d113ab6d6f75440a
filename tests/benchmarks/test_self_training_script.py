"""The benchmark of self-training runs at toy size, and goes on where it stopped."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from tiny_runs import SMALL

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "self_training.py"


def test_each_defense_is_measured_without_and_with_pseudo_labels_as_often(tmp_path):
    spec = importlib.util.spec_from_file_location("benchmark_self_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    report = tmp_path / "found.json"
    settings = [text for text in SMALL if not text.startswith("data.train_limit")]
    options = ["--labeled", "40", "--seeds", "0", "--equal-steps", "--pairs", "rst_linf"]
    options += ["--output", str(tmp_path / "runs"), "--json", str(report)]
    options += [part for text in settings for part in ("--set", text)]
    found = module.main(options)
    assert json.loads(report.read_text("utf-8")) == found
    (labels,) = found["pseudo_labels"]
    assert labels["images"] == 1257
    kinds = [(row["defense"], row["unlabeled"]) for row in found["rows"]]
    assert kinds == [("trades", "without"), ("rst_linf", "with")]
    # 40 images: batches of 32 and 8, twice; or 16, 16 and 8 beside as many unlabeled ones.
    assert [row["steps"] for row in found["rows"]] == [4, 3]
    assert all(0 <= row["union"] <= row["clean"] <= 100 for row in found["rows"])
    again = module.main(options)
    assert again["rows"] == found["rows"]
