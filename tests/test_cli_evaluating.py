"""`evaluate`, `merge`, `compare` and `breakdown` as they are typed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from multirobust import evaluation
from multirobust.evaluation import State, load
from multirobust.evaluation.storage import MANIFEST
from nearest_mean import STEPS, NearestMean, write_model

SETTINGS = tuple(part for override in STEPS for part in ("--set", override))


@pytest.fixture(scope="module")
def nearest(tmp_path_factory) -> NearestMean:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def command(nearest) -> tuple[str, ...]:
    of_model = ("--model", nearest.spec, "--weights", nearest.weights)
    return ("evaluate", *of_model, "--data", "digits", *SETTINGS, "--limit", "24")


@pytest.fixture(autouse=True)
def unaudited(monkeypatch):
    """Without the audit, which costs more than these attacks and is tested in test_audit.py."""
    monkeypatch.setattr("multirobust.evaluation.evaluate.audit_model", lambda *a, **o: ())


def facts(folder: Path) -> list:
    outcomes = load(folder)
    columns = [(c.name, c.states.tolist(), c.distances.tolist()) for c in outcomes.columns]
    return [outcomes.index.tolist(), outcomes.predictions.tolist(), columns]


def test_a_model_is_evaluated_told_and_read_back(multirobust, command, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = multirobust(*command, "--output", out)
    assert first.code == 0
    assert re.search(r"^pgd_linf: \d+ of 24 survive \(.* s\)$", first.err, re.MULTILINE)
    assert first.out == f"{load(out)}\nOutcomes: {out}\n"

    def never(*arguments, **options):
        raise AssertionError("attacked")

    monkeypatch.setattr(evaluation, "evaluate_suite", never)
    again = multirobust(*command, "--output", out)
    assert (again.code, again.out) == (0, first.out)
    assert again.err == f"already evaluated with these settings in {out}\n"
    refused = multirobust(*command, "--model-arg", "scale=2.0", "--output", out)
    assert refused.code == 2
    assert "of another options than now; choose another --output" in refused.err


def test_each_option_does_what_it_says(multirobust, command, tmp_path):
    options = ("--seed", 5, "--mode", "cascade", "--save-images", "--threats", "e_at")
    answer = multirobust(*command, *options, "--output", tmp_path)
    assert answer.code == 0
    outcomes = load(tmp_path)
    assert (outcomes.manifest["seed"], outcomes.manifest["mode"]) == (5, "cascade")
    assert {column.threat: column.radius for column in outcomes.columns}["l1"] == 12.0
    for column in outcomes.columns:
        kept = load_file(tmp_path / "adversarial" / f"{column.name}.safetensors")
        assert len(kept["images"]) == int((column.distances[column.states == 1] > 0).sum())


def test_a_folder_of_mixed_sizes_is_scaled_and_its_classes_are_ordered(
    multirobust, nearest, tmp_path
):
    for name, size in (("zero", 8), ("one", 12)):
        (tmp_path / "own" / name).mkdir(parents=True)
        Image.new("L", (size, size), 99).save(tmp_path / "own" / name / "a.png")
    of_model = ("--model", nearest.spec, "--weights", nearest.weights, "--threats", "digits")
    command = ("evaluate", *of_model, *SETTINGS, "--data", tmp_path / "own")
    out = ("--output", tmp_path / "out")
    refused = multirobust(*command, *out)
    assert refused.code == 1
    assert "--image-size 32 with --data" in refused.err
    done = multirobust(*command, *out, "--image-size", 8, "--class-names", "zero, one")
    assert done.code == 0, done.err
    assert sorted(load(tmp_path / "out").labels.tolist()) == [0, 1]
    asked = load(tmp_path / "out").manifest["evaluation"]
    assert (asked["image_size"], asked["class_names"]) == (8, ["zero", "one"])


def test_merged_shards_are_the_whole(multirobust, command, tmp_path):
    command = (*command, "--set", "evaluation.block_size=8")
    assert multirobust(*command, "--output", tmp_path / "whole").code == 0
    parts = [tmp_path / f"{part}" for part in (1, 2, 3)]
    for part in parts:
        assert multirobust(*command, "--shard", f"{part.name}/3", "--output", part).code == 0
    answer = multirobust("merge", *parts, "--output", tmp_path / "joined")
    assert answer.out == f"{load(tmp_path / 'whole')}\nOutcomes: {tmp_path / 'joined'}\n"
    assert facts(tmp_path / "joined") == facts(tmp_path / "whole")
    lacking = multirobust("merge", *parts[:2], "--output", tmp_path / "no")
    assert lacking.code == 2
    assert "missing: [3]" in lacking.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "RUN: give run folders, or any classifier with --model"),
        (["runs", "--model", "m.py:make", "--data", "digits"], "RUN and --model exclude each"),
        (["runs", "--weights", "w.safetensors"], "--weights belongs to --model, which is not"),
        (["runs", "--data", "digits"], "--data belongs to --model, which is not given"),
        (["runs", "--image-size", "8"], "--image-size belongs to --model, which is not given"),
        (["runs", "--class-names", "a,b"], "--class-names belongs to --model, which is not"),
        (["--model", "m", "--data", ".", "--class-names", "a,,b"], "--class-names: must be differ"),
        (["--model", "m", "--data", "digits", "--image-size", "8"], "size is not an argument for"),
        (["runs", "--output", "out"], "--output belongs to --model, which is not given"),
        (["runs", "--model-arg", "a=1"], "--model-arg belongs to --model, which is not given"),
        (["--model", "m.py:make"], "--data: --model needs images to classify, got none"),
        (["--model", "m.py:make", "--data", "digit"], "Unknown data set: 'digit'"),
        (["--model", "m.py:make", "--data", "digits"], "m.py"),
        (["--model", "nope", "--data", "digits"], "Unknown model: 'nope'"),
        (["--model", "m.py:make", "--data", "digits", "--suite", "qick"], "Did you mean 'quick'?"),
        (["--model", "m.py:make", "--data", "digits", "--threats", "x"], "Unknown threat preset"),
        (["--model", "m.py:make", "--data", "digits", "--shard", "3/2"], "shard: must be i/n"),
        (["--model", "m.py:make", "--data", "digits", "--shard", "half"], "shard: must be i/n"),
        (["--model", "m", "--data", "digits", "--split", "validation"], "--split validation"),
        (["--model", "m", "--data", "digits", "--model-arg", "a"], "is not written name=value"),
        (["--model", "m", "--data", "digits", "--mode", "all"], "--mode"),
        (
            ["--model", "m", "--data", "digits", "--set", "threats.linf=8"],
            "8 / 255, which is 0.03",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_bad_usage_is_one_message_and_leaves_no_folder(
    multirobust, monkeypatch, tmp_path, arguments, told
):
    monkeypatch.chdir(tmp_path)
    answer = multirobust("evaluate", *arguments)
    assert answer.code == 2
    assert told in " ".join(answer.err.split())
    assert answer.out == ""
    assert list(tmp_path.iterdir()) == []


def test_strict_makes_a_finding_an_error(multirobust, command, tmp_path, monkeypatch):
    found = (evaluation.Finding("random", "The model draws."),)
    monkeypatch.setattr("multirobust.evaluation.evaluate.audit_model", lambda *a, **o: found)
    strict = multirobust(*command, "--strict", "--output", tmp_path)
    assert strict.code == 2
    assert "audit: random: The model draws." in strict.err
    assert not (tmp_path / MANIFEST).exists()
    lenient = multirobust(*command, "--output", tmp_path)
    assert lenient.code == 0
    assert "audit: random" in lenient.err
    assert "audit: random" in lenient.out


def test_a_cascade_shows_ranges_for_norms_and_one_number_for_the_union(
    multirobust, command, tmp_path
):
    out = tmp_path / "out"
    assert multirobust(*command, "--mode", "cascade", "--output", out).code == 0
    assert multirobust(*command, "--output", tmp_path / "whole").code == 0
    outcomes, whole = load(out), load(tmp_path / "whole")
    first, last = outcomes.columns[0], outcomes.columns[-1]
    assert first.states.tolist() == whole.columns[0].states.tolist()
    union = outcomes.union()
    assert union.exact
    assert union.value == (last.states == State.SURVIVED).mean()
    inexact = [threat for threat in ("l2", "l1") if not outcomes.worst(threat).exact]
    assert inexact
    answer = multirobust("compare", out)
    assert answer.code == 0
    row = next(line for line in answer.out.splitlines() if line.startswith("make"))
    assert f" {100 * union.value:.1f}  [" in row
    ranges = row.count("–") - 1  # the time of the training is unknown
    assert ranges == len(inexact) + 1  # and the average
    assert "(mode cascade); the union is exact" in answer.out


def test_paired_gives_a_line_for_each_but_the_first_and_needs_two(multirobust, finished):
    answer = multirobust("compare", finished, "--paired")
    assert answer.code == 0
    lines = [line for line in answer.out.splitlines() if "against adv_linf (seed 0)" in line]
    assert [line.split()[0] for line in lines] == ["ant", "mng_ac"]
    assert all("points, p = " in line and "on 16 images" in line for line in lines)
    alone = multirobust("compare", finished / "ant-s0", "--paired")
    assert (alone.code, alone.out) == (2, "")
    assert "--paired: needs at least two evaluations" in alone.err


def test_a_model_of_ones_own_is_compared_with_runs(multirobust, command, finished, tmp_path):
    command = (*command[:-2], "--limit", 16, "--output", tmp_path / "own", "--seed", 1)
    assert multirobust(*command).code == 0
    answer = multirobust("compare", finished / "ant-s0", tmp_path / "own", "--paired")
    assert answer.code == 0
    assert [line.split()[0] for line in answer.out.splitlines()[2:4]] == ["ant", "make"]
    assert "make (seed 0) against ant (seed 0)" in answer.out


@pytest.mark.parametrize(
    ("form", "sign"), [("text", "-----"), ("markdown", "| --"), ("latex", r"\begin{tabular}")]
)
def test_breakdown_prints_each_format(multirobust, finished, form, sign):
    answer = multirobust("breakdown", finished / "ant-s0", "--format", form)
    assert answer.code == 0
    assert sign in answer.out
    table = answer.out.replace(r"\_", "_")
    assert table.index("pgd_linf") < table.index("pgd_l2") < table.index("pgd_l1")
    assert "all (union)" in table
    quick = finished / "ant-s0" / "evaluation" / "quick"
    assert multirobust("breakdown", quick, "--format", form).out == answer.out


@pytest.mark.parametrize("change", ["threats.l2=12", "threats.l1=60", "threats.linf=2"])
def test_a_refused_radius_leaves_nothing_in_a_run(multirobust, runs, change):
    folder = runs / "ant-s0"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    answer = multirobust("evaluate", folder, "--set", change)
    assert answer.code == 2
    assert "/ 255, which is" in answer.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_breakdown_of_several_evaluations_asks_for_one(multirobust, finished):
    answer = multirobust("breakdown", finished)
    assert (answer.code, answer.out) == (1, "")
    assert "holds 3 evaluations" in answer.err


def test_autoattack_runs_its_four_attacks_in_every_norm(
    multirobust, command, tmp_path, monkeypatch
):
    monkeypatch.setattr("multirobust.evaluation.suites_in_norms.STEPS", 2)
    monkeypatch.setattr("multirobust.evaluation.suites_in_norms.QUERIES", 2)
    command = (*command[:-2], "--limit", 6, "--suite", "autoattack", "--output", tmp_path)
    assert multirobust(*command).code == 0
    outcomes = load(tmp_path)
    names = [column.name for column in outcomes.columns]
    kinds = ("apgd_ce", "apgd_t", "fab_t", "square")
    assert names == [f"{kind}_{norm}" for norm in ("linf", "l2", "l1") for kind in kinds]
    assert outcomes.manifest["mode"] == "per_threat"
    assert outcomes.manifest["errors"] == {}
    assert all(outcomes.worst(threat).exact for threat in outcomes.threats)


# Says after each block that is kept that it is, so that it can be killed there.
KILLED = """
import os, sys
from multirobust import cli
from multirobust.evaluation import evaluate
from multirobust.evaluation.partial import PartialResults

evaluate.audit_model = lambda *a, **o: ()
save = PartialResults.save

def told(self, *arguments):
    save(self, *arguments)
    os.write(1, b".")
    if sys.argv[1] == "wait":
        sys.stdin.read()

PartialResults.save = told
sys.argv[:2] = ["multirobust"]
cli.main()
"""


def test_killed_while_it_attacks_the_same_command_gives_the_same_outcomes(
    multirobust, command, tmp_path, monkeypatch
):
    command = (*command, "--set", "evaluation.block_size=8")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert multirobust(*command, "--output", whole).code == 0
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, "wait", *command, "--output", str(killed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.read(1) == b".", process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / MANIFEST).exists()
    assert len(list((killed / "partial").glob("*.npz"))) == 1

    attacked: list[int] = []
    attack = evaluation.runner.Runner.attack

    def counted(self, named, x, y, positions):
        attacked.append(int(positions[0]))
        return attack(self, named, x, y, positions)

    monkeypatch.setattr(evaluation.runner.Runner, "attack", counted)
    assert multirobust(*command, "--output", killed).code == 0
    assert len(attacked) == 3 * 3 - 1
    assert facts(killed) == facts(whole)
    assert not (killed / "partial").exists()
