"""Ray: a cluster with two workers gives what one process gives, also when a worker is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import sweep_tasks as tasks

from multirobust.errors import InputError
from multirobust.sweep import LocalEngine, RayEngine, Session, Sweep, Task, on_ray
from tiny_runs import SMALL

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs pip install 'multirobust[ray]'"
)


@pytest.fixture(scope="module")
def address():
    """A cluster of this machine alone with two workers, that others could join."""
    on_ray._ray()  # quiet from its import on
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
        cluster = Cluster(initialize_head=True, head_node_args=options)
        yield cluster.address
        cluster.shutdown()


@pytest.fixture
def unaudited(monkeypatch):
    """Without the audit in this process; workers do it."""
    monkeypatch.setattr("multirobust.evaluation.evaluate.audit_model", lambda *a, **o: ())


def task(folder: Path, name: str, function) -> Task:
    return Task(name=name, function=function, arguments=(folder, name))


def sweep(folder: Path) -> Sweep:
    """Two runs of 24 steps, saved after each step."""
    more = ("training.epochs=12", "training.checkpoint_seconds=0", "training.log_steps=1")
    chosen = ("defenses=['adv_linf']", "seeds=[0, 1]", "evaluation.block_size=6")
    return Sweep(recipe="digits", output=folder, overrides=(*SMALL, *more, *chosen))


def results(folder: Path) -> dict[str, bytes]:
    """Return what does not hold times: weights, course of the training, outcomes of each image."""
    names = ("model.safetensors", "defense.safetensors", "metrics.jsonl", "outcomes.parquet")
    paths = [path for name in names for path in folder.rglob(name)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def without_times(page: Path) -> list[str]:
    return [line.rsplit("|", 2)[0] for line in page.read_text().splitlines()]


def kill_worker(title: str, begun: Path, killed: list[int]) -> None:
    """Kill the worker that runs a task, as soon as a file is there."""
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if name == f"ray::{title}":
            os.kill(int(folder.name), signal.SIGKILL)
            killed.append(int(folder.name))


def first_steps(run: Path) -> list[int]:
    """Return the first step that each process of a training logged."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    logs = sorted((run / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime)
    steps = [[event.step for event in EventFileLoader(str(log)).Load()] for log in logs]
    return [min(step for step in found if step) for found in steps if any(found)]


def test_a_worker_killed_halfway_is_replaced_and_the_sweep_equals_the_sequential(
    address, tmp_path, capfd, unaudited
):
    engine, killed, told = RayEngine(address=address), [], []
    victim = tmp_path / "ray" / "adv_linf-s1"
    killer = threading.Thread(
        target=kill_worker, args=("adv_linf-s1", victim / "checkpoint.pt", killed)
    )
    killer.start()
    found = sweep(tmp_path / "ray").run(engine, Session(tell=told.append))
    killer.join()
    assert len(killed) == 1
    assert any(line.startswith("adv_linf-s1: failed and is tried again (its wor") for line in told)
    assert first_steps(victim)[0] == 1
    assert first_steps(victim)[-1] > 1, "it began anew instead of going on"

    alone = sweep(tmp_path / "local").run(LocalEngine(cpus=1), Session())
    assert results(tmp_path / "ray") == results(tmp_path / "local")
    assert len(results(tmp_path / "ray")) == 8
    pages = [r.write(tmp_path / name)[0] for name, r in (("ray", found), ("local", alone))]
    assert without_times(pages[0]) == without_times(pages[1])
    found.check()
    assert capfd.readouterr() == ("", "")


def test_a_task_that_fails_ends_in_one_error_and_the_others_finish(address, tmp_path):
    names = {
        "good": tasks.write_name,
        "deadly": tasks.die_at_first,
        "shaky": tasks.fail_at_first,
        "bad": tasks.fail_always,
        "wrong": tasks.refuse,
    }
    found = RayEngine(address=address, retries=1).run(
        [task(tmp_path, name, function) for name, function in names.items()], Session()
    )
    assert [ended.name for ended in found] == list(names)
    assert [ended.attempts for ended in found] == [1, 2, 2, 2, 1]
    assert [ended.error for ended in found] == [
        "",
        "",
        "",
        "RuntimeError: no such luck",
        "the loss is NaN; lower the learning rate",
    ]
    assert found[0].lines == ("good writes",)
    assert len(set(tasks.attempts(tmp_path, "deadly"))) == 2, "not in two processes"


def test_a_task_that_no_machine_has_room_for_is_refused(address, tmp_path):
    wide = RayEngine(address=address, cpus=3)
    with pytest.raises(InputError, match=r"cpus: a task wants 3, and no machine has more than 2"):
        wide.run([task(tmp_path, "a", tasks.write_name)], Session())
    graphic = RayEngine(address=address, gpus=0.5)
    with pytest.raises(InputError, match=r"gpus: a task wants 0.5, .* lower --gpus"):
        graphic.run([task(tmp_path, "a", tasks.write_name)], Session())
    assert tasks.attempts(tmp_path, "a") == []


def test_evaluate_with_ray_finds_what_evaluate_alone_finds(address, run, multirobust, unaudited):
    settings = ("--set", "evaluation.block_size=6", "--mode", "cascade")
    alone = multirobust("evaluate", run.folder, *settings, "--cpus", 1)
    assert alone.code == 0, alone.err
    before = results(run.folder)
    (folder,) = run.folder.glob("evaluation/quick-*")
    for path in folder.iterdir():
        path.unlink()
    on_ray = ("--engine", "ray", "--address", address, "--cpus", 1)
    shared = multirobust("evaluate", run.folder, *settings, *on_ray)
    assert shared.code == 0, shared.err
    assert "3 of 3 parts of the evaluation have ended" in shared.err
    assert "ray" not in shared.out.lower()
    assert results(run.folder) == before
