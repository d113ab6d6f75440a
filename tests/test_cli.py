from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multirobust import catalog, cli, errors, experiment
from multirobust.config import load_recipe
from tiny_runs import SETTINGS

COMMANDS = (
    *("list", "show", "train", "evaluate", "merge", "compare", "breakdown", "report"),
    *("curve", "run", "sweep", "reproduce", "pseudo-label", "export", "push", "demo"),
)
MAIN = "import sys; from multirobust.cli import main; sys.argv[0] = 'multirobust'; main()"


def shell(*arguments: object, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def test_the_help_names_every_command_and_the_exit_codes(multirobust):
    answer = multirobust("--help")
    assert answer.code == 0
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", answer.out)
    assert "Exit codes: 0" in answer.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example_of_it(multirobust, command):
    answer = multirobust(command, "--help")
    assert answer.code == 0
    text = " ".join(answer.out.split())
    assert f"Example: multirobust {command}" in text


def test_there_is_no_command_besides_those_tested():
    names = {info.name or info.callback.__name__ for info in cli.app.registered_commands}
    assert names == set(COMMANDS)


@pytest.mark.parametrize(
    "table", ["defenses", "attacks", "datasets", "models", "suites", "reproductions"]
)
def test_list_prints_a_line_for_every_name(multirobust, table):
    answer = multirobust("list", table)
    assert answer.code == 0
    names = [line.split()[0] for line in answer.out.splitlines()]
    more = list(catalog.EVALUATION_SETS) if table == "datasets" else []
    assert names == [*getattr(catalog, table.upper()), *more]


def test_list_recipes_names_what_show_shows(multirobust, tmp_path):
    answer = multirobust("list", "recipes")
    names = [line.split()[0] for line in answer.out.splitlines()]
    assert "digits" in names
    assert answer.err.endswith("multirobust list reproductions.\n")
    for name in names:
        shown = multirobust("show", name)
        assert shown.code == 0
        (tmp_path / f"{name}.toml").write_text(shown.out, "utf-8")
        assert load_recipe(tmp_path / f"{name}.toml") == load_recipe(name)


def test_show_fills_in_what_is_set(multirobust):
    answer = multirobust("show", "digits", "--set", "training.epochs=3", "--set", "seeds=[4, 5]")
    assert "epochs = 3\n" in answer.out
    assert "seeds = [4, 5]\n" in answer.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "Missing argument 'RECIPE'"),
        (["trian", "digits"], "No such command 'trian'"),
        (["train", "digits", "--epochs", "3"], "No such option"),
        (["train", "digits", "--seed", "one"], "--seed"),
        (["evaluate", "runs", "--limit", "0"], "--limit"),
        (["evaluate", "runs", "--split", "train"], "--split"),
        (["compare", "runs", "--format", "html"], "--format"),
        (["compare"], "Missing argument"),
        (["list", "defences"], "Did you mean 'defenses'? Known: attacks, datasets, defenses"),
        (["show", "digit"], "Unknown recipe: 'digit'. Did you mean 'digits'?"),
        (["show", "no/such.toml"], "cannot be read"),
        (["train", "digits", "--defense", "satt"], "Unknown defense: 'satt'. Did you mean 'sat'?"),
        (["train", "digits", "--set", "training.epochs"], "must be written path.to.field=value"),
        (["train", "digits", "--set", "data.folder=x"], "data: digits are embedded and have no"),
        (["train", "digits", "--seed", "-1"], "seeds.0: input should be greater than or equal"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(
    multirobust, monkeypatch, tmp_path, arguments, told
):
    monkeypatch.chdir(tmp_path)
    answer = multirobust(*arguments)
    assert answer.code == 2
    assert told in " ".join(answer.err.split())
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert list(tmp_path.iterdir()) == []


def test_no_arguments_show_the_help(multirobust):
    answer = multirobust()
    assert answer.code == 2
    assert "Usage: multirobust" in answer.out + answer.err


def test_all_problems_of_a_configuration_are_told_at_once(multirobust):
    sets = ["training.epochs=0", "data.nmae=x", "threats.l2=-1", "model.name=wrn"]
    answer = multirobust("train", "digits", *(part for s in sets for part in ("--set", s)))
    assert answer.code == 2
    for path in ("training.epochs", "data.nmae", "threats.l2", "model.name"):
        assert path in answer.err


def all_errors() -> list[type[errors.MultirobustError]]:
    def below(kind: type) -> list[type]:
        return [kind, *(k for child in kind.__subclasses__() for k in below(child))]

    return [k for k in below(errors.MultirobustError) if k.__module__ == "multirobust.errors"]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_package_is_its_message_and_a_code(multirobust, monkeypatch, kind):
    def fail(*arguments):
        raise kind(["what, why, way out"] if kind is errors.ConfigError else "what, why, way out")

    monkeypatch.setattr(experiment, "results_of", fail)
    answer = multirobust("compare", "x")
    assert answer.code == (2 if issubclass(kind, errors.InputError) else 1)
    assert answer.out == ""
    assert answer.err.removeprefix("Error: ") == "what, why, way out\n"


def test_an_error_of_our_own_is_not_hidden(multirobust, monkeypatch):
    monkeypatch.setattr(experiment, "results_of", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        multirobust("compare", "x")


def test_ctrl_c_outside_of_training_says_that_the_same_command_goes_on(multirobust, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "results_of", interrupt)
    answer = multirobust("compare", "x")
    assert answer.code == 1
    assert "Run the same command again" in answer.err


def test_run_trains_evaluates_compares_and_reports_and_does_nothing_twice(
    multirobust, tmp_path, monkeypatch
):
    command = ("run", "digits", *SETTINGS, "--defense", "sat", "--defense", "mng_ac")
    first = multirobust(*command, "--output", tmp_path / "out")
    assert first.code == 0
    assert "sat-s0: 2 steps" in first.err
    assert "pgd_l1" in first.err
    rows = [line.split()[0] for line in first.out.splitlines() if line]
    assert rows[0] == "defense"
    assert rows[2:4] == ["sat", "mng_ac"]
    assert first.out.rstrip().endswith(f"Report: {tmp_path / 'out' / 'report.html'}")
    for name in ("sat-s0", "mng_ac-s0"):
        there = {path.name for path in (tmp_path / "out" / name).iterdir()}
        assert {"recipe.toml", "run.json", "model.safetensors", "training.json"} <= there

    def never(*arguments, **options):
        raise AssertionError("done already")

    monkeypatch.setattr("multirobust.training.fit", never)
    monkeypatch.setattr("multirobust.evaluation.evaluate_suite", never)
    second = multirobust(*command, "--output", tmp_path / "out")
    assert second.out == first.out
    assert second.err.count("already trained") == second.err.count("already evaluated") == 2


def test_run_with_other_evaluation_settings_tells_those_and_keeps_the_first(multirobust, runs):
    command = ("run", "digits", *SETTINGS, "--defense", "ant", "--output", runs)
    answer = multirobust(*command, "--set", "evaluation.limit=8")
    assert "on 8 images" in answer.out
    assert "on 16 images" in multirobust("compare", runs / "ant-s0").out


def test_train_and_evaluate_stand_alone(multirobust, tmp_path):
    out = tmp_path / "out"
    answer = multirobust(
        "train", "digits", *SETTINGS, "--defense", "standard", "--seed", 3, "--output", out
    )
    assert (answer.code, answer.out) == (0, "")
    answer = multirobust("compare", out)
    assert answer.code == 1
    assert "multirobust evaluate" in answer.err
    assert multirobust("evaluate", out).code == 0
    assert multirobust("compare", out).code == 0


@pytest.mark.parametrize(
    ("form", "sign"), [("text", "-----"), ("markdown", "| --"), ("latex", r"\begin{tabular}")]
)
def test_compare_prints_each_format(multirobust, finished, form, sign):
    answer = multirobust("compare", finished, "--format", form)
    assert answer.code == 0
    assert sign in answer.out
    table = answer.out.replace(r"\_", "_")
    assert table.index("adv_linf") < table.index("ant") < table.index("mng_ac")


def test_compare_writes_a_record_of_the_same_numbers(multirobust, finished, tmp_path):
    from multirobust.report import comparison, read_record, text

    answer = multirobust("compare", finished, "--record", tmp_path / "record.json")
    assert text(comparison(read_record(tmp_path / "record.json"))).rstrip() == answer.out.rstrip()
    command = json.loads((tmp_path / "record.json").read_text("utf-8"))["command"]
    assert command.startswith("multirobust compare ")


def test_report_writes_the_file_it_names(multirobust, runs):
    answer = multirobust("report", runs, "--output", runs / "deep" / "r.html", "--images", 1)
    assert answer.code == 0
    assert answer.out == f"Report: {runs / 'deep' / 'r.html'}\n"
    assert "mng_ac" in (runs / "deep" / "r.html").read_text("utf-8")


def test_evaluate_keeps_a_smaller_evaluation_beside_the_full_one(multirobust, runs):
    answer = multirobust("evaluate", runs, "--limit", "5")
    assert answer.code == 0
    (name,) = set(re.findall(r"--suite (\S+)", answer.err))
    assert "on 5 images" in multirobust("compare", runs, "--suite", name).out
    assert "on 16 images" in multirobust("compare", runs).out
    again = multirobust("evaluate", runs, "--limit", "5")
    assert again.err.count("already evaluated") == 3


def test_evaluate_refuses_to_change_what_was_trained(multirobust, runs):
    for change in ("model.widths=[9]", "data.validation=10", "attack.restarts=9", "seeds=[1]"):
        answer = multirobust("evaluate", runs, "--set", change)
        assert answer.code == 2
        assert change.split("=")[0] in answer.err
    assert multirobust("evaluate", runs, "--split", "validation").code == 2


def test_an_evaluation_that_is_not_there_is_told_with_those_that_are(multirobust, finished):
    answer = multirobust("compare", finished, "--suite", "quik")
    assert answer.code == 1
    assert "Did you mean 'quick'?" in answer.err
    assert "It has: quick" in answer.err


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_saves_says_how_to_go_on_and_the_rerun_ends_with_the_same_weights(
    multirobust, tmp_path
):
    command = ("train", "digits", *SETTINGS, "--defense", "sat", "--set", "training.epochs=25")
    stopped = tmp_path / "stopped"
    process = shell(*command, "--output", stopped)
    wait_for(stopped / "sat-s0" / "checkpoint.pt", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert out == ""
    assert "Run the same command again to go on." in err
    assert "Traceback" not in err
    assert not (stopped / "sat-s0" / "training.json").exists()

    assert "resumed at step" in multirobust(*command, "--output", stopped).err
    assert multirobust(*command, "--output", tmp_path / "whole").code == 0
    for name in ("model.safetensors", "metrics.jsonl"):
        ours = (stopped / "sat-s0" / name).read_bytes()
        assert ours == (tmp_path / "whole" / "sat-s0" / name).read_bytes(), name


def test_the_installed_command_prints_no_traceback_for_a_bad_folder(tmp_path):
    process = shell("compare", tmp_path / "nothing")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1
