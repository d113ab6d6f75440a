"""Two processes on one folder: one works, the other is told; a dead one is never in the way."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multirobust.errors import RunError
from multirobust.experiment import evaluate_all, find_runs, prepare, train_run
from multirobust.experiment.runs import open_run, plan, stored_recipe
from multirobust.training.run_folder import exclusive
from tiny_runs import tiny_recipe

fcntl = pytest.importorskip("fcntl")


@contextlib.contextmanager
def another(act: Callable[[], contextlib.AbstractContextManager]) -> Iterator[int]:
    """Enter a context in another process, and stay in it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), act():
            os.write(writing, b".")
            signal.pause()
        os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"."
        yield child
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_the_second_process_is_told_who_works_there(tmp_path: Path):
    with another(lambda: exclusive(tmp_path)) as child:
        told = rf"process trains in this folder \(process {child} on .*\); wait for it, or choose"
        with pytest.raises(RunError, match=told), exclusive(tmp_path):
            pass
    with exclusive(tmp_path):
        pass


def test_a_stopped_process_keeps_its_lock_and_a_killed_one_loses_it_at_once(tmp_path: Path):
    with another(lambda: exclusive(tmp_path)) as child:
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(RunError, match="another process"), exclusive(tmp_path):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with exclusive(tmp_path):
            pass


def test_the_lock_of_a_process_that_is_long_dead_does_not_block(tmp_path: Path):
    (tmp_path / ".lock").write_text("process 1 on elsewhere\n", "utf-8")
    with exclusive(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text("utf-8")


def test_what_a_lock_says_is_shown_only_in_words_of_ours(tmp_path: Path):
    with another(lambda: exclusive(tmp_path)):
        (tmp_path / ".lock").write_text("process 1 on \x1b[31mred\n", "utf-8")
        with pytest.raises(RunError, match="trains in this folder; wait"), exclusive(tmp_path):
            pass


def test_temporary_files_of_killed_writers_go_and_other_files_stay(tmp_path: Path):
    kept = [".hidden.tmp", "a.0123abcd.tmp", ".checkpoint.next.pt.zzzzzzzz.tmp", "model.tmp"]
    for name in [*kept, ".checkpoint.next.pt.0123abcd.tmp", ".a b.ffffffff.tmp"]:
        (tmp_path / name).write_bytes(b"")
    with exclusive(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {*kept, ".lock"}


@pytest.mark.parametrize(
    ("code", "told"), [(errno.EACCES, "another process"), (errno.EAGAIN, "another process")]
)
def test_both_ways_in_which_a_network_file_system_says_locked(
    code: int, told: str, tmp_path: Path, monkeypatch
):
    def held(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(RunError, match=told), exclusive(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_and_used(tmp_path: Path, monkeypatch):
    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / ".a.0123abcd.tmp").write_bytes(b"of another process, for all we know")
    with pytest.warns(UserWarning, match="keeps no locks.*no other process"), exclusive(tmp_path):
        assert (tmp_path / ".a.0123abcd.tmp").exists()


def test_a_run_is_not_trained_twice_at_a_time_and_goes_on_when_the_other_is_dead(tmp_path: Path):
    ((run,), data) = prepare(tiny_recipe("defenses=['standard']"), tmp_path)
    with another(lambda: exclusive(run.folder)):
        before = content(run.folder)
        with pytest.raises(RunError, match="another process trains in this folder"):
            train_run(run, data)
        assert content(run.folder) == before
    train_run(run, data)
    assert run.trained


def test_an_evaluation_is_not_made_twice_at_a_time_but_another_one_may_be_beside_it(one: Path):
    (run,) = find_runs([one])
    folder = one / "evaluation" / "quick"
    (folder / "outcomes.json").unlink()
    with another(lambda: exclusive(folder)):
        before = content(one)
        with pytest.raises(RunError, match="another process evaluates in this folder"):
            evaluate_all([run])
        assert content(one) == before
        evaluate_all([run], overrides=["evaluation.limit=3"])
    evaluate_all([run])
    assert (folder / "outcomes.json").exists()


def test_stored_outcomes_are_read_while_another_process_works_there(one: Path):
    (run,) = find_runs([one])
    lines: list[str] = []
    with another(lambda: exclusive(one / "evaluation" / "quick")):
        evaluate_all([run], tell=lines.append)
    assert "already evaluated" in lines[0]


def test_of_many_processes_that_begin_different_runs_in_one_folder_one_wins(tmp_path: Path):
    recipes = [tiny_recipe("defenses=['standard']", f"training.epochs={n}") for n in (1, 2)] * 3
    for attempt in range(5):
        output, children, codes = tmp_path / str(attempt), [], []
        reading, writing = os.pipe()
        for recipe in recipes:
            if not (child := os.fork()):
                os.close(writing)
                os.read(reading, 1)  # all begin when the pipe is closed
                try:
                    open_run(plan(recipe, output)[0])
                except RunError as error:
                    os._exit(1 if "holds another run (training.epochs" in str(error) else 3)
                except BaseException:
                    os._exit(4)
                os._exit(0)
            children.append(child)
        os.close(writing)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        os.close(reading)
        assert sorted(codes) == [0, 0, 0, 1, 1, 1]
        (run,) = find_runs([output])  # recipe and identity agree
        assert stored_recipe(run.folder).training.epochs == (1 if codes[0] == 0 else 2)
