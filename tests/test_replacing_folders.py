"""A folder is replaced by another as a whole, or stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multirobust import files
from multirobust.errors import RunError
from multirobust.files import replace_folder, restore_folder


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def filled(folder: Path, **names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in names.items():
        (folder / name).write_text(text)
    return folder


def replace(folder: Path, **names: str) -> None:
    with replace_folder(folder, keep=lambda name: name.startswith(".")) as staged:
        filled(staged, **names)


@pytest.fixture
def folder(tmp_path):
    place = filled(tmp_path / "out", a="old a", b="old b")
    filled(place / ".git", head="old head")
    (place / ".link").symlink_to("nowhere")
    return place


KEPT = {".git/head": "old head", ".link": "nowhere"}


def test_the_new_folder_takes_the_name_and_keeps_what_is_to_be_kept(folder, tmp_path):
    os.chmod(folder, 0o700)
    replace(folder, a="new a", c="new c")
    assert content(folder) == {"a": "new a", "c": "new c"} | KEPT
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_is_not_there_or_empty_is_made(tmp_path):
    replace(tmp_path / "new", a="1")
    (tmp_path / "empty").mkdir()
    replace(tmp_path / "empty", a="2")
    assert content(tmp_path) == {"new/a": "1", "empty/a": "2"}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_to_a_folder_stays_a_link(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    replace(link, a="new a")
    assert link.is_symlink()
    assert content(folder) == {"a": "new a"} | KEPT


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_it_is_filled_leaves_the_earlier_one(folder, tmp_path, error):
    def fail(name: str) -> bool:
        raise error

    before = content(folder)
    with pytest.raises(error), replace_folder(folder, keep=fail) as staged:
        filled(staged, a="new a")
    with pytest.raises(error), replace_folder(folder, keep=lambda name: True):
        raise error
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_rename_that_fails_leaves_the_earlier_one(folder, tmp_path, monkeypatch, failing, error):
    before, rename, calls = content(folder), os.rename, 0

    def fails(*arguments):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise error
        rename(*arguments)

    monkeypatch.setattr(files.os, "rename", fails)
    kind = RunError if isinstance(error, OSError) else KeyboardInterrupt
    told = "What was there before is unchanged" if kind is RunError else None
    with pytest.raises(kind, match=told):
        replace(folder, a="new a")
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_what_cannot_be_copied_leaves_the_earlier_one(folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    before = content(folder)
    monkeypatch.setattr(files.shutil, "copytree", full)
    with pytest.raises(RunError, match="out: cannot be written: No space left on device"):
        replace(folder, a="new a")
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def killed_between_the_renames(folder: Path) -> None:
    class Killed(BaseException):
        pass

    rename, calls = os.rename, []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise Killed  # also when the earlier folder would get its name back
        rename(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "rename", fails)
        with pytest.raises(Killed):
            replace(folder, a="new a")


def test_a_kill_between_the_two_renames_loses_nothing(folder, tmp_path):
    before = content(folder)
    killed_between_the_renames(folder)
    assert not folder.exists()
    restore_folder(folder)
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_restoring_removes_what_was_replaced_and_touches_no_other_name(folder, tmp_path):
    filled(tmp_path / ".out.0123abcd.old", a="replaced")
    others = {".out.2020.old", ".other.0123abcd.old", "out.0123abcd.old"}
    for name in others:
        filled(tmp_path / name, a="mine")
    before = content(folder)
    restore_folder(folder)
    assert content(folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", *others}
    restore_folder(tmp_path / "nowhere" / "deep")
    assert not (tmp_path / "nowhere").exists()
