"""`--devices`: the command starts its processes, and they end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from multirobust import errors
from multirobust.cli.launching import Ranks
from multirobust.training import load_checkpoint
from test_cli import shell
from tiny_runs import SETTINGS

QUICK = (*SETTINGS, "--set", "training.device=cpu")


def test_two_devices_train_and_one_evaluates(tmp_path):
    arguments = ("run", "digits", *QUICK, "--set", "training.epochs=1", "--devices", 2)
    process = shell(*arguments, "--defense", "mng_ac", "--output", tmp_path)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert err.count("mng_ac-s0: trained in") == 1
    assert out.count("mng_ac") == 1
    assert (tmp_path / "report.html").is_file()
    facts = json.loads((tmp_path / "mng_ac-s0/training.json").read_text("utf-8"))
    assert facts["devices"] == 2
    assert facts["steps"] == 2


def test_interrupted_on_two_devices_it_is_saved_and_one_message_says_so(tmp_path):
    more = ("--set", "training.epochs=100000", "--set", "training.checkpoint_seconds=0")
    arguments = ("train", "digits", *QUICK, *more, "--defense", "sat", "--output", tmp_path)
    process = shell(*arguments, "--devices", 2, start_new_session=True)
    folder, deadline = tmp_path / "sat-s0", time.monotonic() + 100
    while not (folder / "checkpoint.previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert err.count("Run the same command again to go on.") == 1
    assert "Traceback" not in err
    saved = load_checkpoint(folder)
    assert saved is not None
    assert f"Interrupted at step {saved['step']} of 200000" in err


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """Start processes that run a line of Python each, in place of the command line."""

    def begin(*lines: str) -> Ranks:
        def start(self: Ranks, rank: int, arguments: list[str], environment: dict[str, str]):
            with (tmp_path / f"{rank}.txt").open("wb") as said:
                code = [sys.executable, "-c", f"import os, sys, time; {lines[rank]}"]
                return subprocess.Popen(
                    code, stdin=subprocess.PIPE, stderr=said, env={**os.environ, **environment}
                )

        monkeypatch.setattr(Ranks, "_start", start)
        started = Ranks(len(lines), [], tmp_path)
        with started.stopping_with_this():
            started.wait()
        for process in started.processes:
            assert process.stdin
            process.stdin.close()
        return started

    return begin


LOST = "{'kind': 'TrainingError', 'message': 'Rank 0 of 2 has lost another one, whose'}"
TELL = "import json; open(os.environ['MULTIROBUST_ENDING'], 'w').write(json.dumps({}));sys.exit(1)"


def test_a_killed_rank_is_named_and_not_who_lost_it(ranks):
    problem = ranks(TELL.format(LOST), "time.sleep(0.2); os.kill(os.getpid(), 9)").problem()
    assert isinstance(problem, errors.TrainingError)
    assert "Rank 1 of 2 was killed (SIGKILL)" in str(problem)


def test_the_own_error_of_a_rank_is_told_as_it_is(ranks):
    own = "{'kind': 'ConfigError', 'message': 'a problem'}"
    problem = ranks(TELL.format(LOST), TELL.format(own)).problem()
    assert isinstance(problem, errors.ConfigError)
    assert str(problem) == "a problem"


def test_an_error_that_all_tell_is_told_once(ranks):
    own = "{'kind': 'InputError', 'message': 'a problem'}"
    problem = ranks(TELL.format(own), TELL.format(own)).problem()
    assert isinstance(problem, errors.InputError)
    assert str(problem) == "a problem"


def test_the_last_words_of_a_rank_that_crashed_are_told(ranks):
    problem = ranks("pass", "sys.exit('out of memory')").problem()
    assert "Rank 1 of 2 ended with code 1: out of memory" in str(problem)


def test_a_rank_that_does_not_end_by_itself_is_ended(ranks, monkeypatch):
    monkeypatch.setattr("multirobust.cli.launching.GRACE", 0.1)
    begun = time.monotonic()
    problem = ranks("time.sleep(60)", "sys.exit(3)").problem()
    assert "Rank 1 of 2 ended with code 3" in str(problem)
    assert time.monotonic() - begun < 30


def test_a_rank_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import multirobust.cli.common as common, time\n"
        "common.app = lambda **options: (print('begun', flush=True), time.sleep(60))\n"
        "from multirobust.cli.launching import work; work()\n"
    )
    environment = {**os.environ, "MULTIROBUST_ENDING": str(tmp_path / "ending.json")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        process.stdin.close()
        assert process.wait(timeout=20) == 1
