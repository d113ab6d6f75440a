"""`sweep` as it is typed: one table, nothing twice, one clear error for what fails."""

from __future__ import annotations

import json

import pytest

from multirobust.experiment import find_runs, results_of
from multirobust.report import comparison, text
from tiny_runs import SETTINGS


@pytest.fixture(scope="module")
def unaudited():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multirobust.evaluation.evaluate.audit_model", lambda *a, **o: ())
        yield


@pytest.fixture
def command(tmp_path, unaudited) -> tuple:
    return ("sweep", "digits", *SETTINGS, "--defense", "adv_linf", "--output", tmp_path / "out")


def test_a_sweep_trains_attacks_compares_and_is_not_repeated(
    multirobust, command, tmp_path, monkeypatch
):
    first = multirobust(*command, "--seeds", 2)
    assert first.code == 0, first.err
    out = tmp_path / "out"
    assert first.out == text(comparison(results_of([out])))
    assert [run.seed for run in find_runs([out])] == [0, 1]
    assert first.err.startswith("2 trials, 0 of them done before; one after the other in this")
    assert f"wrote {out / 'sweep.md'}" in first.err
    record = json.loads((out / "sweep.json").read_text())
    assert [run["seed"] for run in record["runs"]] == [0, 1]

    def never(*arguments, **options):
        raise AssertionError("begun again")

    monkeypatch.setattr("multirobust.sweep.trials.train_all", never)
    again = multirobust(*command, "--seeds", 2)
    assert (again.code, again.out) == (0, first.out)
    assert "2 trials, 2 of them done before" in again.err


def test_a_grid_is_a_row_for_each_point_and_a_failure_is_named(multirobust, command, tmp_path):
    found = multirobust(*command, "--grid", "training.peak_lr=0.05,1e38", "--retries", 1)
    assert found.code == 1
    rows = [line.split("   ")[0] for line in found.out.splitlines() if "adv_linf" in line]
    assert rows == ["adv_linf (training.peak_lr=0.05)"]
    last = found.err.splitlines()[-1]
    failed = "training.peak_lr=1e38/adv_linf-s0 (attempts: 1)"
    assert last.startswith(f"Error: 1 of 2 trials failed: {failed}: The training's 'loss' became")
    assert "the same command tries these again" in last
    assert (
        tmp_path / "out" / "training.peak_lr=0.05" / "adv_linf-s0" / "model.safetensors"
    ).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid", "training.peak_lr"), "grid: must be a field and its values"),
        (("--grid", "training.peak_lrr=1,2"), "training.peak_lrr"),
        (("--address", "auto"), "--address belongs to --engine ray"),
        (("--gpus", "1"), "--gpus belongs to --engine ray"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_made(
    multirobust, command, tmp_path, options, message
):
    found = multirobust(*command, *options)
    assert found.code == 2
    assert message in found.err
    assert not (tmp_path / "out").exists()
