"""SIGKILL and SIGTERM at random moments: a handful here, sixty in `make soak`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_killed_at_random_all_commands_end_with_the_same_bits(tmp_path: Path):
    kills, output = 5, tmp_path / "soak.json"
    command = [sys.executable, "-W", "error", SCRIPT, "--output", output]
    command += ["--kills", str(kills), "--seeds", "1"]
    finished = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(output.read_text("utf-8"))
    assert found["kills"] >= kills - 1
    assert found["kills_resumed_to_the_same_bits"] == found["kills"]
    assert found["runs_with_the_same_bits"] == found["runs"]
    assert {scenario["name"] for scenario in found["scenarios"] if scenario["kills"]} == {
        *("training", "evaluation", "sweep", "training, SIGTERM")
    }
