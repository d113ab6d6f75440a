"""Time from the command to the first step of a training, in fresh processes, and where it goes.

    python benchmarks/start_up.py --before ../earlier/src --output results/start_up.json

Each round starts `multirobust train RECIPE` anew and ends it after the first step of the training.
With `--before`, the source folder of an earlier version, rounds of both alternate. The time is
split in:

- `interpreter`: until Python runs the first line;
- `imports`: all import statements, wherever they stand; `imports_by_package` says whose, each
  without what it imports in turn;
- `data`, `model`, `fabric`: loading the data, drawing the weights, starting Fabric;
- `first_step`: batch, attack, loss and optimizer;
- `rest`: the recipe, the run folder, the logs.

None holds the imports within it. Beside their `total`, `processor` is the time on all cores, which
other work on the machine does not lengthen as it does the others. Reported are the medians of the
rounds, and of `total` the least too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from multirobust.provenance import provenance

SPLIT = ("interpreter", "imports", "data", "model", "fabric", "first_step", "rest")
PARTS = (*SPLIT, "total", "processor")
SHOWN = 8
"""Packages of which the time of the imports is given."""

DRIVER = r"""
import builtins, collections, json, os, sys, time
entered = time.monotonic()
_, begun, output, *command = sys.argv
parts, packages = collections.Counter(), collections.Counter()
inside, depths, importing = [], [], builtins.__import__
timed = {
    ("multirobust.experiment.workflow", "load_data"): "data",
    ("multirobust.experiment.pipeline", "build_model"): "model",
    ("multirobust.training.runtime", "Runtime.__init__"): "fabric",
    ("multirobust.training.loop", "Loop._train_step"): "first_step",
}

def charge(name, seconds):
    parts[name] += seconds
    if inside:
        parts[inside[-1]] -= seconds

def end():
    now, before = time.monotonic(), entered - float(begun)
    found = {name: parts[name] for name in ("imports", *timed_names)}
    found |= {"interpreter": before, "total": now - float(begun)}
    found["rest"] = 2 * found["total"] - sum(found.values())
    with open(output, "w") as stream:
        found["processor"] = time.process_time()
        json.dump({"parts": found, "packages": packages}, stream)
    os._exit(0)

timed_names = list(timed.values())

def with_clock(name, function):
    def run(*arguments, **options):
        inside.append(name)
        before = time.monotonic()
        result = function(*arguments, **options)
        inside.pop()
        charge(name, time.monotonic() - before)
        if name == "first_step":
            end()
        return result
    return run

def patch():
    for (module, path), name in list(timed.items()):
        owner, (*outer, attribute) = sys.modules.get(module), path.split(".")
        for part in outer:
            owner = getattr(owner, part, None)
        if owner is not None and hasattr(owner, attribute):
            setattr(owner, attribute, with_clock(name, getattr(owner, attribute)))
            del timed[module, path]

def clocked_import(name, globals=None, locals=None, fromlist=(), level=0):
    depths.append(0.0)
    before = time.monotonic()
    try:
        return importing(name, globals, locals, fromlist, level)
    finally:
        seconds = time.monotonic() - before
        package = (globals or {}).get("__package__") or "" if level else name
        packages[package.partition(".")[0]] += seconds - depths.pop()
        if depths:
            depths[-1] += seconds
        else:
            charge("imports", seconds)
            patch()

builtins.__import__ = clocked_import
sys.argv = ["multirobust", *command]
from multirobust.cli import main
main()
"""


def started(source: Path, command: list[str]) -> dict[str, Any]:
    """Start a training from a source folder, and return what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "measured.json"
        arguments = [*command, "--output", str(Path(folder) / "runs")]
        begun = time.monotonic()
        finished = subprocess.run(
            [sys.executable, "-c", DRIVER, str(begun), str(output), *arguments],
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
        )
        if not output.is_file():
            raise SystemExit(f"the training took no step:\n{finished.stderr}")
        return json.loads(output.read_text("utf-8"))


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the rounds, in seconds."""
    middle = {
        name: round(statistics.median(one["parts"][name] for one in rounds), 3) for name in PARTS
    }
    packages = {name for one in rounds for name in one["packages"]}
    spent = {
        name: statistics.median(one["packages"].get(name, 0.0) for one in rounds)
        for name in packages
    }
    most = sorted(spent, key=spent.__getitem__, reverse=True)[:SHOWN]
    return {
        "seconds": middle,
        "least_total": round(min(one["parts"]["total"] for one in rounds), 3),
        "imports_by_package": {name: round(spent[name], 3) for name in most},
    }


def compared(pairs: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """Return the ratios of the rounds of two versions: median, least, most."""
    found = {}
    for name in ("total", "processor"):
        ratios = sorted(after[name] / before[name] for after, before in pairs)
        three = {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
        found[name] = {key: round(value, 3) for key, value in three.items()}
    return found


def commit_of(source: Path) -> str:
    """Return the commit of a source folder."""
    found = subprocess.run(
        ["git", "-C", str(source), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
    )
    return found.stdout.strip() or "unknown"


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--defense", default="sat")
    parser.add_argument("--set", dest="overrides", action="append", metavar="a.b=c", default=[])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=Path, help="source folder of an earlier version")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the result, and return (and save) it."""
    arguments = parsed(given)
    sources = {"after": Path(__file__).resolve().parents[1] / "src"}
    if arguments.before:
        sources = {"before": arguments.before.resolve()} | sources
    command = ["train", arguments.recipe, "--defense", arguments.defense]
    for override in ["training.device=cpu", *arguments.overrides]:
        command += ["--set", override]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sources}
    for source in sources.values() if arguments.rounds > 1 else ():
        started(source, command)  # writes byte code and fills the disk cache
    for _ in range(arguments.rounds):
        for name, source in sources.items():
            rounds[name].append(started(source, command))
    content: dict[str, Any] = {"benchmark": "start_up", "command": " ".join(command)}
    content |= {"rounds": arguments.rounds, "note": arguments.note}
    for name, source in sources.items():
        content[name] = {"commit": commit_of(source), **summary(rounds[name])}
    if arguments.before:
        pairs = zip(rounds["after"], rounds["before"], strict=True)
        content["after_to_before"] = compared([(a["parts"], b["parts"]) for a, b in pairs])
    content |= provenance()
    text = json.dumps(content, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")
    return content


if __name__ == "__main__":
    main()
