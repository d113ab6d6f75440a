"""The benchmarks of a defense's variants run at toy size, and compare what they say."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tiny_runs import SMALL

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", SCRIPTS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_variant_is_compared_with_the_first_and_rows_are_replaced(finished, tmp_path):
    shutil.copytree(finished / "mng_ac-s0", tmp_path / "first" / "mng_ac-s0")
    shutil.copytree(finished / "mng_ac-s0", tmp_path / "second" / "mng_ac-s0")
    report = tmp_path / "variants.json"
    folders = [f"a={tmp_path / 'first'}", f"b={tmp_path / 'second'}"]
    for _ in range(2):
        found = script("variants").main([*folders, "--json", str(report)])
    assert json.loads(report.read_text("utf-8")) == found
    one, other = found["rows"]
    assert (one["variant"], one["difference"]) == ("a", None)
    assert (other["variant"], other["difference"]) == ("b", 0.0)
    assert one["unions"] == other["unions"]
    assert one["passes"] > 0


def test_variants_are_compared_seed_by_seed():
    against = script("variants").against
    base = {0: 40.0, 1: 50.0, 2: 60.0}
    found = against(base, {2: 65.0, 0: 41.0, 1: 53.0})
    # Differences 1, 3 and 5: two degrees of freedom, t = 4.303, 4.303 * 2 / sqrt(3).
    assert found == {"difference": 3.0, "interval": pytest.approx(4.97, abs=0.01)}
    assert against(base, {1: 51.0}) == {"difference": 1.0, "interval": None}
    assert against(base, {7: 51.0}) == {"difference": None, "interval": None}


def test_the_whole_batch_points_the_way_of_itself(tmp_path):
    module = script("cheap_meta")
    settings = ["--every", "1", "--lags", "1", "--shares", "1.0", "0.5", "--seeds", "0"]
    report = tmp_path / "meta.json"
    found = module.main(["digits", "--set", *SMALL, *settings, "--json", str(report)])
    assert json.loads(report.read_text("utf-8")) == found
    cosines = {(row["kind"], row["of"]): row["cosine"] for row in found["rows"]}
    assert cosines["share", 1.0] == 1.0
    assert -1 <= cosines["share", 0.5] < 1
