"""Runs that are killed again and again, against the same runs left alone: are the bits the same?

    python benchmarks/soak.py --kills 60 --output results/soak.json

Four scenarios on the embedded digits with a tiny network, each by the commands of the shell:
training, evaluation, a whole sweep of defenses and seeds (`multirobust run`), and training that is
asked to stop by SIGTERM, as a batch system does. The first three are sent SIGKILL. A kill falls at
a random time after a random event: a step, a save, an attacked block, the report. After each the
newest checkpoints and the outcomes must be whole, and no step that was saved may be lost. After
some kills the command may end, and what it leaves is compared with what the undisturbed command
left, byte for byte, the clock's numbers left out; then another folder is begun.

Processes are forked from one that has imported everything: they start in milliseconds, so that
kills fall into the work and not into imports.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from multirobust import cli, evaluation
from multirobust.evaluation.partial import PartialResults
from multirobust.evaluation.runner import Runner
from multirobust.experiment import pipeline
from multirobust.files import atomic_write
from multirobust.provenance import provenance
from multirobust.training import load_checkpoint, loop
from multirobust.training.metrics import MetricsLog

SETTINGS = (
    *("training.epochs=3", "training.batch_size=32", "training.log_steps=2"),
    *("training.device=cpu", "training.checkpoint_seconds=0"),
    *("data.train_limit=128", "data.test_limit=40", "model.widths=[4, 8]"),
    *("evaluation.limit=24", "evaluation.block_size=8"),
    *(f"attack.{norm}.steps=2" for norm in ("linf", "l2", "l1")),
    *(f"evaluation.attack.{norm}.steps=5" for norm in ("linf", "l2", "l1")),
)
SET = [part for setting in SETTINGS for part in ("--set", setting)]
PHASES = {
    "a step": (loop.Loop, "_train_step"),
    "the logs": (MetricsLog, "flush"),
    "a checkpoint": (loop, "save_checkpoint"),
    "the weights": (pipeline, "keep_training"),
    "an attack": (Runner, "attack"),
    "a block": (PartialResults, "save"),
    "the outcomes": (evaluation, "save"),
    "the report": (cli.training, "write_report_of"),
}
NAMES = ["between", *PHASES]
TRAINING, EVALUATION = NAMES[1:5], NAMES[5:8]


@dataclass
class Scenario:
    """A command, the events after which it is hit, and what came of it."""

    name: str
    command: list[str]
    events: list[str]
    share: float
    sign: signal.Signals = signal.SIGKILL
    start: Path | None = None
    fell: Counter[str] = field(default_factory=Counter)
    rounds: list[tuple[int, bool]] = field(default_factory=list)


def scenarios(run: Path, seeds: int) -> list[Scenario]:
    """Return what is tried: on a trained run to evaluate, and on a sweep of so many seeds."""
    train = ["train", "digits", *SET, "--defense", "mng_ac", "--output", "{}"]
    evaluate = ["evaluate", "{}", "--save-images"]
    sweep = ["run", "digits", *SET, "--output", "{}"]
    sweep += [part for seed in range(seeds) for part in ("--seed", str(seed))]
    sweep += ["--defense", "sat", "--defense", "mng_ac"]
    return [
        Scenario("training", train, TRAINING, 0.3),
        Scenario("evaluation", evaluate, EVALUATION, 0.25, start=run),
        Scenario("sweep", sweep, [*TRAINING, *EVALUATION, "the report"], 0.35),
        Scenario("training, SIGTERM", train, TRAINING[:3], 0.1, sign=signal.SIGTERM),
    ]


class Board:
    """Memory that a process shares with its parent: where it is, and how often it was where."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8 * (1 + len(NAMES)))

    def __getitem__(self, place: int) -> int:
        return struct.unpack_from("q", self.memory, 8 * place)[0]

    def __setitem__(self, place: int, value: int) -> None:
        struct.pack_into("q", self.memory, 8 * place, value)

    def watch(self) -> None:
        """Wrap the functions of the phases, in the process that calls it."""
        for number, name in enumerate(NAMES[1:], 1):
            owner, function = PHASES[name]
            setattr(owner, function, self._watched(number, getattr(owner, function)))

    def _watched(self, number: int, function: Any) -> Any:
        @functools.wraps(function)
        def watched(*arguments: Any, **options: Any) -> Any:
            before, self[0] = self[0], number
            self[number + 1] += 1
            try:
                return function(*arguments, **options)
            finally:
                self[0] = before

        return watched


def started(command: list[str], folder: Path, board: Board) -> int:
    """Start a command of the shell in a fork of this process; return its number."""
    for place in range(1 + len(NAMES)):
        board[place] = 0
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(BaseException):
        log = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        board.watch()
        sys.argv = ["multirobust", *(part.format(folder) for part in command)]
        code = 0
        try:
            cli.main()
        except SystemExit as ending:
            code = int(ending.code or 0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 70
        sys.stdout.flush()
    os._exit(code)


def waited(child: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hit(scenario: Scenario, folder: Path, board: Board, dice: random.Random) -> int | None:
    """Start the command and hit it; return None if it was hit, else its exit code."""
    event, times = NAMES.index(dice.choice(scenario.events)), dice.randint(1, 4)
    later = dice.uniform(0, 0.02)
    child = started(scenario.command, folder, board)
    while board[event + 1] < times:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0002)
    time.sleep(later)
    place = NAMES[board[0]]
    os.kill(child, scenario.sign)
    code = waited(child)
    if code == 0:
        return code
    if code not in (-signal.SIGKILL, 1 if scenario.sign == signal.SIGTERM else -signal.SIGKILL):
        raise SystemExit(f"{scenario.name}: {folder.with_suffix('.log').read_text()[-2000:]}")
    scenario.fell[place] += 1
    return None


def check_whole(folder: Path, steps: dict[Path, int]) -> None:
    """Make sure that what is there after a kill is whole, and no saved step is lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for run in {path.parent for path in folder.rglob("checkpoint*.pt")}:
            content = load_checkpoint(run)
            assert content is not None
            assert content["step"] >= steps.get(run, 0), f"{run}: saved steps are lost"
            steps[run] = content["step"]
    for manifest in folder.rglob("outcomes.json"):
        evaluation.load(manifest.parent)


def played(scenario: Scenario, work: Path, kills: int, dice: random.Random) -> None:
    """Hit a scenario as often as wanted, in as many folders as it takes, and compare."""
    board, steps = Board(), dict[Path, int]()
    undisturbed = begun(scenario, work / "undisturbed")
    if waited(started(scenario.command, undisturbed, board)):
        raise SystemExit(undisturbed.with_suffix(".log").read_text()[-2000:])
    expected = facts(undisturbed)
    while sum(scenario.fell.values()) < kills:
        folder = begun(scenario, work / f"hit-{len(scenario.rounds)}")
        hits, code = 0, None
        for _ in range(dice.randint(2, 8)):
            if sum(scenario.fell.values()) == kills:
                break
            code = hit(scenario, folder, board, dice)
            check_whole(folder, steps)
            hits += code is None
        if waited(started(scenario.command, folder, board)):
            raise SystemExit(folder.with_suffix(".log").read_text()[-2000:])
        found = facts(folder)
        changed = sorted(n for n in {**found, **expected} if found.get(n) != expected.get(n))
        if changed:
            print(f"{scenario.name}: other bits than undisturbed: {changed}", file=sys.stderr)
        scenario.rounds.append((hits, not changed))
        shutil.rmtree(folder)


def begun(scenario: Scenario, folder: Path) -> Path:
    """Return a new folder: empty, or a copy of what the scenario starts from."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if scenario.start:
        return shutil.copytree(scenario.start, folder)
    folder.mkdir()
    return folder


def facts(folder: Path) -> dict[str, str]:
    """Return a digest of each file that the seed determines, the clock's numbers left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(_bytes(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _counts(path)
    }


def _counts(path: Path) -> bool:
    clock = path.name in ("timing.jsonl", "report.html", ".lock") or "tfevents" in path.name
    # Each save moves the newest to previous; which one that was depends on when the run was saved.
    return not clock and path.name != "checkpoint.previous.pt" and ".report.html" not in path.name


def _bytes(path: Path) -> bytes:
    if path.name == "checkpoint.pt":
        return b"".join(_leaves(load_checkpoint(path.parent)))
    if path.name in ("training.json", "outcomes.json"):
        return b"".join(_leaves(json.loads(path.read_text("utf-8"))))
    return path.read_bytes()


def _leaves(tree: Any, path: str = "") -> Iterator[bytes]:
    """Yield names and values of nested content, but for the clock and the state of a checkout."""
    if path.rpartition("/")[2] in ("seconds", "time", "commit"):
        return
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{path}/{name}")
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{path}/{number}")
    else:
        plain = tree.numpy().tobytes() if isinstance(tree, torch.Tensor) else repr(tree).encode()
        yield path.encode() + plain


def imported() -> None:
    """Import what the commands import, before anything is forked."""
    torch.set_num_threads(1)
    import lightning_fabric  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    from pyarrow import parquet  # noqa: F401
    from torch.utils import tensorboard  # noqa: F401


def summary(found: list[Scenario], seconds: float, made: dict[str, Any]) -> dict[str, Any]:
    """Return what the file holds: how many kills, where they fell, what came of them."""
    told = [
        {
            "name": scenario.name,
            "signal": scenario.sign.name,
            "kills": sum(scenario.fell.values()),
            "fell_into": dict(scenario.fell.most_common()),
            "runs": len(scenario.rounds),
            "runs_with_the_same_bits": sum(same for _, same in scenario.rounds),
            "kills_resumed_to_the_same_bits": sum(hits for hits, same in scenario.rounds if same),
        }
        for scenario in found
    ]
    keys = "kills", "runs", "runs_with_the_same_bits", "kills_resumed_to_the_same_bits"
    return {
        "benchmark": "soak",
        **{key: sum(scenario[key] for scenario in told) for key in keys},
        "scenarios": told,
        "seconds": round(seconds, 1),
        **made,
    }


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Play all scenarios, print the summary, and return (and save) it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--seeds", type=int, default=2, help="of the sweep")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(given)
    imported()
    made = provenance()  # of the code that was imported, whatever the checkout is in the end
    dice, begin = random.Random(arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trained = Path(folder) / "trained"
        command = ["train", "digits", *SET, "--defense", "sat", "--output", "{}"]
        if waited(started(command, trained, Board())):
            raise SystemExit(trained.with_suffix(".log").read_text())
        found = scenarios(trained / "sat-s0", arguments.seeds)
        for scenario in found:
            kills = max(1, round(arguments.kills * scenario.share))
            played(scenario, Path(folder) / scenario.name.replace(", ", "-"), kills, dice)
    content = summary(found, time.monotonic() - begin, made)
    text = json.dumps(content, indent=2)
    print(text)
    if arguments.output:
        atomic_write(arguments.output, (text + "\n").encode())
    if content["runs_with_the_same_bits"] != content["runs"]:
        raise SystemExit("some runs ended with other bits")
    return content


if __name__ == "__main__":
    main()
