"""The benchmark that kills an evaluation runs at toy size and finds nothing lost."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "resume.py"


def test_a_killed_evaluation_ends_as_one_that_was_left_alone(finished, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_resume", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = ["--images", "12", "--block-size", "4", "--kills", "1", "--suite", "quick"]
    options += ["--output", str(tmp_path / "resume.json")]
    found = module.main([str(finished / "adv_linf-s0"), *options])
    assert json.loads((tmp_path / "resume.json").read_text("utf-8")) == found
    assert len(found["kills_at_seconds"]) == 1
    assert found["same_states"]
    assert found["same_distances"]
    assert found["same_passes"]
    assert found["attacks"] == ["pgd_linf", "pgd_l2", "pgd_l1"]
