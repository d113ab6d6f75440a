"""Stored results that are damaged, torn or half there: found out, made again, the same bits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multirobust import evaluation
from multirobust.evaluation.runner import Runner
from multirobust.experiment import attacking, evaluate_all, find_runs

TABLE, MANIFEST = "outcomes.parquet", "outcomes.json"


class Killed(BaseException):
    """In place of SIGKILL, within one process."""


def die(*arguments, **options):
    raise Killed


@pytest.fixture
def begun(one: Path, monkeypatch) -> Path:
    """The folder of an evaluation that was killed when all attacks were done."""
    folder = one / "evaluation" / "quick"
    shutil.move(folder / TABLE, one / "expected.parquet")
    (folder / MANIFEST).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(attacking.evaluation, "save", die)
        with pytest.raises(Killed):
            evaluate_all(find_runs([one]))
    return folder


@pytest.fixture
def attacked(monkeypatch) -> list[str]:
    """Which attacks are made, one entry a block."""
    made: list[str] = []
    attack = Runner.attack

    def counted(self, named, *arguments):
        made.append(named.name)
        return attack(self, named, *arguments)

    monkeypatch.setattr(Runner, "attack", counted)
    return made


def test_a_kill_before_the_outcomes_are_safe_costs_no_attack(begun: Path, attacked):
    evaluate_all(find_runs([begun.parents[1]]))
    assert attacked == []
    assert (begun / TABLE).read_bytes() == (begun.parents[1] / "expected.parquet").read_bytes()
    assert not (begun / "partial").exists()


def changed(path: Path, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(path) as stored:
        content = {name: stored[name] for name in stored}
    np.savez(path, **content | {name: change(content[name]) for name, change in changes.items()})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"NUMPY") + 130] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "flipped": flip,
    "foreign": lambda path: path.write_bytes(b"PK\x03\x04 or so"),
    "pickle": lambda path: np.savez(path, states=np.array([{}], dtype=object)),
    "too many images": lambda path: changed(path, states=lambda old: np.zeros(99, np.int64)),
    "no states": lambda path: changed(path, states=lambda old: old + 7),
    "no distances": lambda path: changed(path, distances=lambda old: old * np.nan),
}


def images_in(block: Path) -> int:
    with np.load(block) as stored:
        return len(stored["states"])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_block_is_named_and_attacked_again(damage: str, begun: Path, attacked):
    blocks = sorted((begun / "partial").glob("*.npz"))
    block = next(path for path in blocks if images_in(path))
    DAMAGES[damage](block)
    with pytest.warns(UserWarning, match=f"{block.name} is damaged .*attacked again"):
        evaluate_all(find_runs([begun.parents[1]]))
    assert attacked == [block.name.partition(".")[0]]
    assert (begun / TABLE).read_bytes() == (begun.parents[1] / "expected.parquet").read_bytes()


@pytest.mark.parametrize("text", ["", "{}", "\x00", '{"limit":'])
def test_blocks_of_no_known_evaluation_are_not_taken(text: str, begun: Path, attacked):
    (begun / "partial" / "identity.json").write_text(text, "utf-8")
    evaluate_all(find_runs([begun.parents[1]]))
    assert attacked
    assert (begun / TABLE).read_bytes() == (begun.parents[1] / "expected.parquet").read_bytes()


def test_a_kill_between_table_and_manifest_is_found_out(begun: Path, monkeypatch, attacked):
    replace = os.replace

    def torn(source, target):
        replace(source, target)
        if Path(target).name == TABLE:
            raise Killed

    runs = find_runs([begun.parents[1]])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", torn)
        with pytest.raises(Killed):
            evaluate_all(runs)
    evaluate_all(runs)
    assert attacked == []
    assert evaluation.load(begun)


def test_what_a_kill_after_the_save_leaves_is_removed(begun: Path, monkeypatch):
    runs = find_runs([begun.parents[1]])
    with monkeypatch.context() as patch:
        patch.setattr("multirobust.evaluation.partial.PartialResults.clear", die)
        with pytest.raises(Killed):
            evaluate_all(runs)
    assert (begun / "partial").exists()
    evaluate_all(runs)
    assert not (begun / "partial").exists()


@pytest.mark.parametrize("fault", ["killed", "removed", "of other outcomes"])
def test_adversarial_images_are_all_there_or_made_again(fault: str, one: Path, monkeypatch):
    (run,), folder = find_runs([one]), one / "evaluation" / "quick" / "adversarial"
    if fault == "killed":
        with monkeypatch.context() as patch:
            patch.setattr("multirobust.evaluation.storage.atomic_write", _after(1))
            patch.setattr(attacking.evaluation, "save", die)
            with pytest.raises(Killed):
                evaluate_all([run], save_images=True)
    else:
        evaluate_all([run], save_images=True)
        first = min(folder.iterdir())
        first.unlink() if fault == "removed" else first.write_bytes(b"others")
    evaluate_all([run], save_images=True)
    noted = json.loads((folder.parent / MANIFEST).read_text("utf-8"))["manifest"]["adversarial"]
    assert sorted(noted) == ["pgd_l1", "pgd_l2", "pgd_linf"]
    for name in noted:
        assert evaluation_images(folder / f"{name}.safetensors") > 0
    lines: list[str] = []
    evaluate_all([run], save_images=True, tell=lines.append)
    assert "already evaluated" in lines[0]


def _after(calls: int):
    """Die at a write after so many that are made."""
    from multirobust.files import atomic_write

    def writing(path, content):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Killed
        atomic_write(path, content)

    return writing


def evaluation_images(path: Path) -> int:
    from safetensors.numpy import load_file

    content = load_file(path)
    assert len(content["index"]) == len(content["images"])
    return len(content["images"])
