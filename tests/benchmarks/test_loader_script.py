"""The benchmark of the loaders runs at toy size, on batches that it has found to be the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from multirobust.data.host_images import HostImages

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loader.py"
SMALL = ["--images", "30", "--size", "8", "--batch", "6", "--rounds", "2"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_loader", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_place_is_timed_against_batches_that_lie_ready(script, tmp_path):
    found = script.main([*SMALL, "--output", str(tmp_path / "loader.json")])
    assert json.loads((tmp_path / "loader.json").read_text("utf-8")) == found
    for part in ("training_steps", "batches_alone"):
        assert list(found[part]) == list(script.WAYS)
        assert all(row["wall_milliseconds_a_batch"] >= 0 for row in found[part].values())
        assert {"wall_to_device", "processor_to_device"} < set(found[part]["host"])
    assert "wall_to_bare" in found["training_steps"]["device"]


def test_batches_that_differ_are_not_timed(script, monkeypatch):
    gather = HostImages.gather
    monkeypatch.setattr(
        HostImages, "gather", lambda self, i, out: gather(self, i, out) or out.neg_()
    )
    with pytest.raises(SystemExit, match="batches from the host are others"):
        script.main(SMALL)
