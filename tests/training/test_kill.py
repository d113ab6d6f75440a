"""SIGKILL at any moment: started again, the run ends with the bits of the undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import outcome

# Imports once, then forks a process for each start of the run: forked after the import, it starts
# in milliseconds. Each process is told how it ends: killed by the parent some time after a step, or
# killed by itself at a numbered call of a function that a save goes through.
SCRIPT = '''
import json, os, signal, sys, time
from pathlib import Path

import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import lightning_fabric
from torch.utils import tensorboard
from training_runs import all_options, held_out_digits, small_digits, train

small_digits(), held_out_digits()

def kill_at(name, call):
    """Replace a function of os by one that kills this process at its n-th call."""
    original = getattr(os, name)
    def counted(*arguments):
        nonlocal call
        call -= 1
        if call == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)
    setattr(os, name, counted)

def run(defense, folder, ending, pipe):
    if ending["kind"] in ("replace", "fsync", "truncate"):
        kill_at(ending["kind"], ending["at"])
    def stop():
        os.write(pipe, b".")
        if ending["kind"] == "self":
            ending["at"] -= 1
            if ending["at"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return False
    name, _, more = defense.partition(" ")
    settings = all_options(Path(folder).parent / "start.pt") if more else {}
    options = settings.pop("options", {}) | {"stop": stop}
    train(name, Path(folder), checkpoint_seconds=0, epochs=5, options=options, **settings)

def start(defense, folder, ending):
    """Return the steps that one process took, and whether it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            run(defense, folder, ending, writing)
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        os._exit(code)
    os.close(writing)
    steps = 0
    while os.read(reading, 1):
        steps += 1
        if ending["kind"] == "parent" and steps == ending["at"]:
            time.sleep(ending["later"])
            os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, ending
        return steps, False
    assert os.WTERMSIG(status) == signal.SIGKILL, ending
    return steps, True

folder, endings, reports = Path(sys.argv[2]), json.loads(sys.argv[3]), {}
never = {"kind": "never"}
for defense in sys.argv[4:]:
    report = [start(defense, folder / defense / "undisturbed", never)]
    report += [start(defense, folder / defense / "killed", ending) for ending in endings]
    reports[defense] = [*report, start(defense, folder / defense / "killed", never)]
print(json.dumps(reports))
'''

# One save calls fsync for the two logs, the file and the folder, and replace three times.
ENDINGS = [
    {"kind": "fsync", "at": 3},  # before the first checkpoint is whole
    {"kind": "self", "at": 1},
    {"kind": "replace", "at": 2},  # whole as next, its predecessor not moved
    {"kind": "replace", "at": 3},  # whole as next, no newest
    {"kind": "replace", "at": 1},  # written under a temporary name
    {"kind": "truncate", "at": 2},  # while the logs of the killed run are cut
    {"kind": "fsync", "at": 2},  # the metrics are ahead of the checkpoint
    {"kind": "parent", "at": 2, "later": 0.0},
    {"kind": "parent", "at": 1, "later": 0.004},
    {"kind": "parent", "at": 1, "later": 0.013},
    {"kind": "fsync", "at": 8},
]


RUNS = ["sat", "mng_ac", "mng_ac with all options"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.py").write_text(SCRIPT, "utf-8")
    for name in RUNS:
        (folder / name).mkdir()
    finished = subprocess.run(
        [
            *(sys.executable, "-W", "error", str(folder / "run.py"), str(Path(__file__).parent)),
            *(str(folder), json.dumps(ENDINGS), *RUNS),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return folder, json.loads(finished.stdout)


@pytest.mark.parametrize("defense", RUNS)
def test_a_run_killed_at_many_moments_ends_with_the_same_bits(defense: str, reports):
    folder, (undisturbed, *starts) = reports[0] / defense, reports[1][defense]
    assert undisturbed == [15, False]
    assert [killed for _, killed in starts] == [True] * len(ENDINGS) + [False]
    assert sum(steps > 0 for steps, _ in starts) >= 5, "too few starts made progress"
    assert outcome(folder / "killed") == outcome(folder / "undisturbed")
    lines = (folder / "killed" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3, 5, 6, 8, 9, 11, 12, 14, 15]
