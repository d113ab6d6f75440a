"""Files and folders that are written whole or not at all.

Bytes go to a temporary name in the same folder, reach the disk, and only then take the real name
in one step: a crash, a kill or a full disk at any moment leaves the earlier file as it was. A
folder that replaces another takes two steps; see `replace_folder`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

from multirobust.errors import RunError

__all__ = [
    "Content",
    "atomic_write",
    "atomic_write_together",
    "remove_leftovers",
    "replace_folder",
    "restore_folder",
]

Content: TypeAlias = bytes | Callable[[BinaryIO], object]
"""The bytes of a file, or a function that writes them to the stream it is given."""

ASIDE = ".old"
"""How the name of a folder ends while another takes its place."""

LEFTOVER_SECONDS = 3600.0
"""Age at which the temporary file of a writer that was killed may be removed."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)


def atomic_write(path: Path, data: Content) -> None:
    """Write one file whole or not at all.

    Args:
        path: Where the file goes; its folder must exist.
        data: The bytes, or a function that writes them to an open binary stream.

    Raises:
        RunError: If the operating system refuses (full disk, missing folder, no permission). The
            file that was there before is untouched and no temporary file remains.
    """
    atomic_write_together([(path, data)])


def atomic_write_together(files: Sequence[tuple[Path, Content]]) -> None:
    """Write several files: none takes its name before all of them are safe on the disk.

    The names are taken in the given order, so the last file (a manifest with the checksums of the
    others) marks the set as whole.

    Args:
        files: Pairs of a path and its content, as in `atomic_write`.

    Raises:
        RunError: As in `atomic_write`; it names the file that could not be written.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for path, data in files:
            with _naming(path):
                _remove_leftovers(path)
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
                staged.append((temporary, path))
                _write_through(temporary, data)
        for temporary, path in staged:
            with _naming(path):
                os.replace(temporary, path)
        for folder in {path.parent for _, path in staged}:
            _flush_folder(folder)
    finally:
        for temporary, _ in staged:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(folder: Path, *, keep: Callable[[str], bool]) -> Iterator[Path]:
    """Give an empty folder that takes the name of another when the block ends without an error.

    The earlier folder is moved aside, the new one takes its name, and only then the earlier one is
    removed. If anything fails, the earlier one is there as it was. A kill between the two renames
    leaves it aside, where `restore_folder` finds it.

    Args:
        folder: What is replaced, or made; the folder that it lies in must exist.
        keep: Whether a file or folder in the earlier one, by its name, is copied into the new one.

    Raises:
        RunError: If the operating system refuses.
    """
    folder = folder.resolve()
    staged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _naming(folder):
            staged.mkdir()
        yield staged
        with _naming(folder):
            if folder.is_dir():
                _copy_kept(folder, staged, keep)
            _flush_folder(staged)
            _swap(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Give a folder its name back if a replacement of it was killed before its end.

    Raises:
        RunError: If the operating system refuses.
    """
    folder = folder.resolve()
    ours = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}{re.escape(ASIDE)}")
    with _naming(folder):
        around = folder.parent.iterdir() if folder.parent.is_dir() else ()
        aside = [path for path in around if ours.fullmatch(path.name)]
        aside.sort(key=lambda path: path.stat().st_mtime)
        if aside and not folder.exists():
            os.rename(aside.pop(), folder)
    for path in aside:  # replaced, but not removed yet
        shutil.rmtree(path, ignore_errors=True)


def _copy_kept(old: Path, new: Path, keep: Callable[[str], bool]) -> None:
    shutil.copymode(old, new)
    for path in sorted(old.iterdir()):
        if not keep(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _swap(staged: Path, folder: Path) -> None:
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{ASIDE}")
    there = folder.exists()
    if there:
        os.rename(folder, aside)
    try:
        os.rename(staged, folder)
    except BaseException:
        if there:
            os.rename(aside, folder)
        raise
    _flush_folder(folder.parent)
    if there:
        shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Drop the temporary files that killed writers left in a folder, however young.

    Args:
        folder: A folder in which nothing else writes at this time.
    """
    for leftover in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(leftover.name):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _write_through(temporary: Path, data: Content) -> None:
    with open(temporary, "xb") as stream:
        if callable(data):
            data(stream)
        else:
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the new names themselves durable, where the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Drop temporary files of this path that a killed writer left, once they are old."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()


@contextlib.contextmanager
def _naming(path: Path):
    """Turn what the operating system refuses into one error that names the file."""
    try:
        yield
    except Exception as error:
        refused = _refusal_behind(error)
        if refused is None:
            raise
        raise RunError(
            f"{path}: cannot be written: {refused.strerror or refused}. What was there before is "
            f"unchanged. Free some space or choose a folder that exists and is writable."
        ) from error


def _refusal_behind(error: BaseException | None) -> OSError | None:
    """Find the OSError in a chain: torch.save hides a full disk behind a RuntimeError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
