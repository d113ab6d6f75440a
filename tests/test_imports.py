"""What is imported when: names and recipes are told without PyTorch, the rest when it is used."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = (
    "lightning_fabric",
    "sklearn",
    "matplotlib",
    "pyarrow",
    "tensorboard",
    "foolbox",
    "scipy",
    "ray",
)


def run_fresh(script: str) -> dict[str, list[str]]:
    """Run a script in a new interpreter; it reports by `seen(name)` what is loaded by then."""
    preamble = f"""
import json, sys
HEAVY = {("torch", "numpy", *HEAVY)!r}
report = {{}}
def seen(name):
    report[name] = [module for module in HEAVY if module in sys.modules]
"""
    ending = "\nprint('\\n' + json.dumps(report))"
    finished = subprocess.run(
        [sys.executable, "-c", preamble + script + ending],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_help_list_and_show_load_nothing_heavy():
    report = run_fresh(
        """
from multirobust import cli
commands = [["--help"], ["train", "--help"], ["show", "digits", "--set", "training.epochs=3"]]
tables = "defenses", "attacks", "datasets", "models", "suites", "threats", "presets", "recipes"
commands += [["list", table] for table in tables]
for command in commands:
    sys.argv = ["multirobust", *command]
    try:
        cli.main()
    except SystemExit as ending:
        assert not ending.code, command
    seen(" ".join(command))
"""
    )
    assert len(report) == 11
    assert set(map(tuple, report.values())) == {()}


def test_the_package_loads_nothing_until_it_is_used():
    report = run_fresh(
        """
import multirobust as mr
assert set(mr.__all__) <= set(dir(mr))
seen("import")
mr.load_recipe, mr.config, mr.errors
seen("config")
for name in mr.__all__:
    assert getattr(mr, name) is not None
assert mr.train is mr.experiment.train
assert mr.evaluate is mr.experiment.evaluate
seen("everything")
try:
    mr.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    )
    assert report["import"] == report["config"] == []
    assert report["everything"] == ["torch", "numpy"]


def test_subpackages_leave_slow_libraries_for_later():
    report = run_fresh(
        """
import multirobust.training, multirobust.evaluation, multirobust.report
seen("three")
import multirobust.experiment, multirobust.analysis
seen("all")
"""
    )
    assert report["three"] == report["all"] == ["torch", "numpy"]


def test_a_training_of_the_digits_needs_no_scikit_learn():
    report = run_fresh(
        """
from multirobust.data import digits
assert len(digits().train) == 1297
import multirobust.experiment.workflow
seen("training")
assert "multirobust.report" not in sys.modules
"""
    )
    assert report["training"] == ["torch", "numpy"]
