"""An evaluation that is killed again and again, against the same one that is left alone.

    python benchmarks/resume.py runs/demo/sat-s0 --images 200 --kills 6 --output results/resume.json

Two copies of a trained run are evaluated by the same command, `multirobust evaluate`. One is left
alone. The other is sent SIGKILL after a random time, started again, and so on; after the last kill
it may end. Reported: whether both have the same outcomes for every image and attack, bit by bit,
whether both counted the same passes, and the wall time of all starts together beside that of the
one.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from multirobust.evaluation import Outcomes, load
from multirobust.provenance import provenance

MAIN = "import sys; from multirobust.cli import main; sys.argv[0] = 'multirobust'; main()"


def command(run: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the command line of the evaluation."""
    options = ["--suite", arguments.suite, "--limit", str(arguments.images)]
    options += ["--set", f"evaluation.block_size={arguments.block_size}"]
    for override in arguments.overrides or []:
        options += ["--set", override]
    return [sys.executable, "-c", MAIN, "evaluate", str(run), *options]


def left_alone(run: Path, arguments: argparse.Namespace) -> float:
    """Evaluate, and return the seconds it took."""
    started = time.monotonic()
    subprocess.run(command(run, arguments), check=True, capture_output=True)
    return time.monotonic() - started


def killed(run: Path, arguments: argparse.Namespace, whole: float) -> tuple[float, list[float]]:
    """Evaluate with kills; return the seconds of all starts, and when each kill came."""
    times = random.Random(arguments.seed)
    total, kills = 0.0, []
    while True:
        started = time.monotonic()
        process = subprocess.Popen(
            command(run, arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = times.uniform(0.15, 0.35) * whole if len(kills) < arguments.kills else None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills.append(round(time.monotonic() - started, 2))
            total += time.monotonic() - started
            continue
        total += time.monotonic() - started
        if code:
            raise SystemExit(f"the evaluation ended with code {code}")
        return total, kills


def outcomes_of(run: Path) -> Outcomes:
    """Return the one evaluation of a copy."""
    (folder,) = (path.parent for path in run.glob("evaluation/*/outcomes.json"))
    return load(folder)


def compared(one: Outcomes, other: Outcomes) -> dict[str, object]:
    """Return what is the same in two outcomes, and what the attacks counted."""
    pairs = list(zip(one.columns, other.columns, strict=True))
    return {
        "attacks": [column.name for column in one.columns],
        "same_states": all(np.array_equal(a.states, b.states) for a, b in pairs),
        "same_distances": all(np.array_equal(a.distances, b.distances) for a, b in pairs),
        "same_passes": all(
            (a.forwards, a.backwards) == (b.forwards, b.backwards) for a, b in pairs
        ),
        "union": round(one.union().value, 4),
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a trained run folder")
    parser.add_argument("--suite", default="autoattack")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--set", dest="overrides", action="append", metavar="a.b=c")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


def main(given: list[str] | None = None) -> dict:
    """Run both, print the comparison, and return (and save) it."""
    arguments = parsed(given)
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / name / arguments.run.name for name in ("alone", "killed")]
        for copy in copies:
            shutil.copytree(arguments.run, copy, ignore=shutil.ignore_patterns("evaluation"))
        whole = left_alone(copies[0], arguments)
        total, kills = killed(copies[1], arguments, whole)
        result = compared(*map(outcomes_of, copies))
    content = {
        "benchmark": "resume",
        "suite": arguments.suite,
        "images": arguments.images,
        "block_size": arguments.block_size,
        "kills_at_seconds": kills,
        "seconds_left_alone": round(whole, 1),
        "seconds_with_kills": round(total, 1),
        **result,
        **provenance(),
    }
    text = json.dumps(content, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")
    return content


if __name__ == "__main__":
    main()
