"""The benchmark of the suite runs at toy size, and reads verdicts that were stored."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from multirobust.evaluation import suites_in_norms
from multirobust.experiment import find_runs

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "autoattack.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_autoattack", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(importlib.import_module("sys").modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(suites_in_norms, "STEPS", 3)
    monkeypatch.setattr(suites_in_norms, "QUERIES", 4)
    return module


def test_our_suite_is_measured_and_compared_with_a_stored_verdict(script, finished, tmp_path):
    run = str(find_runs([finished])[0].folder)
    report = tmp_path / "rows.json"
    common = ["--run", run, "--images", "44", "--batch-size", "8", "--output", str(report)]
    alone = script.main([*common, "--skip-reference"])
    assert json.loads(report.read_text()) == alone
    assert [row["norm"] for row in alone["rows"]] == ["linf", "l2", "l1"]
    assert alone["images"] == 44  # 40 test images, then training images
    row = alone["rows"][0]
    names = [attack["attack"] for attack in row["ours"]["attacks"]]
    assert names == list(script.NAMES[: len(names)])
    assert names
    assert row["ours"]["excess"] <= 1e-6
    assert 0 <= row["ours"]["least_pixel"] <= row["ours"]["greatest_pixel"] <= 1
    standing = row["ours"]["attacks"][0]["standing"]
    assert standing == round(alone["clean_accuracy"] * 44 / 100)
    broken = sum(attack["broken"] for attack in row["ours"]["attacks"])
    assert row["ours"]["accuracy"] == pytest.approx(100 * (standing - broken) / 44)

    verdict = {"norm": "linf", "radius": row["radius"], "n": 44, "seconds": 1.0}
    file = tmp_path / "stored.json"
    file.write_text(json.dumps(verdict | {"survived": [0] * 44}))
    one = ["--norms", "linf", "--reference", str(file)]
    compared = script.main([*common, *one])["rows"][0]
    assert compared["ours"]["accuracy"] == row["ours"]["accuracy"]
    assert compared["reference"] == {"accuracy": 0.0, "seconds": 1.0}
    assert compared["differing_share"] == compared["ours"]["accuracy"]
    assert len(compared["only_reference_broke"]) == standing - broken
    file.write_text(json.dumps(verdict | {"survived": [0] * 44, "radius": 9.0}))
    with pytest.raises(SystemExit, match=r"must be of radius .* got radius 9.0"):
        script.main([*common, *one])


def test_without_the_published_package_one_error_says_what_to_do(script, monkeypatch, capsys):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        script.main(["--run", "nowhere"])
    assert "pip install pyautoattack" in capsys.readouterr().err
