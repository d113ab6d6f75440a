"""The file of published numbers gives back the tables that the runs give."""

from __future__ import annotations

import json

import numpy as np
import pytest

from multirobust.errors import DataError
from multirobust.evaluation import AttackColumn, Outcomes
from multirobust.report import RunResult, comparison, read_record, text, write_record


def _results() -> list[RunResult]:
    rng = np.random.default_rng(0)
    results = []
    for name in ("sat", "mng_ac"):
        for seed in (0, 1):
            labels = rng.integers(0, 3, 40)
            predictions = np.where(rng.random(40) < 0.9, labels, (labels + 1) % 3)
            columns = []
            for threat, radius in (("linf", 0.1), ("l2", 1.0)):
                states = rng.integers(0, 3, 40)
                states[predictions != labels] = 1
                columns.append(AttackColumn(f"pgd_{threat}", threat, radius, states, np.ones(40)))
            manifest = {"recipe": {"name": "made up"}, "seed": seed}
            outcomes = Outcomes(np.arange(40), labels, predictions, tuple(columns), manifest)
            results.append(RunResult(name, seed, outcomes, 12.5, 30.0, 20.0, "a machine"))
    return results


def test_a_record_gives_the_same_table_as_the_runs(tmp_path):
    write_record(_results(), tmp_path / "results.json", command="multirobust run digits")
    again = read_record(tmp_path / "results.json")
    assert text(comparison(again)) == text(comparison(_results()))
    for ours, theirs in zip(again, _results(), strict=True):
        assert ours.outcomes.manifest == theirs.outcomes.manifest
        for mine, other in zip(ours.outcomes.columns, theirs.outcomes.columns, strict=True):
            assert np.array_equal(mine.states, other.states)


def test_a_recipe_that_runs_share_is_stored_once(tmp_path):
    write_record(_results(), tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["recipes"] == [{"name": "made up"}]
    assert content["runs"][0]["accuracy"]["clean"][0] == _results()[0].outcomes.clean().value


def test_a_record_does_not_say_where_the_data_lay(tmp_path):
    results = _results()
    for result in results:
        result.outcomes.manifest["recipe"] = {"data": {"name": "cifar10", "folder": "/home/me"}}
    write_record(results, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["recipes"] == [{"data": {"name": "cifar10"}}]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw.replace("multirobust results", "other"),
        lambda raw: raw.replace('"states": "', '"states": "7'),
        lambda raw: "[]",
    ],
)
def test_a_damaged_or_foreign_record_is_one_clear_error(tmp_path, damage):
    path = tmp_path / "results.json"
    write_record(_results(), path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match="is not a results file"):
        read_record(path)
