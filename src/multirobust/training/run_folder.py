"""A run folder belongs to one process at a time, and to one set of settings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from multirobust.errors import InputError, RunError

__all__ = ["difference", "exclusive", "plain"]

NOTHING = "nothing"


@contextlib.contextmanager
def exclusive(folder: Path | None) -> Iterator[None]:
    """Make the folder if it is missing, and keep other processes out of it meanwhile.

    The operating system gives the lock back when the process ends, however it ends.

    Raises:
        RunError: If the folder cannot be written, or another process trains in it.
    """
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("ab")
    except OSError as error:
        raise RunError(
            f"{folder}: this folder cannot be written: {error.strerror}. "
            "Choose a writable --output."
        ) from error
    with stream:
        if not _locked(stream):
            raise RunError(
                f"{folder}: another process trains in this folder; wait for it, or choose another "
                "--output."
            )
        yield


def _locked(stream: BinaryIO) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity as a checkpoint can hold it: what JSON knows, tuples as lists.

    Raises:
        InputError: If it holds anything else.
    """
    try:
        return json.loads(json.dumps(dict(identity), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"identity: must hold only texts, finite numbers, lists and mappings, got {identity!r} "
            f"({error}); a checkpoint could not be compared with anything else."
        ) from None


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Name each field in which two identities differ, with both values."""
    there, here = _flat(theirs), _flat(ours)
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(
        f"{name}: {there.get(name, NOTHING)} there, {here.get(name, NOTHING)} here"
        for name in names
    )


def _flat(fields: Mapping[str, Any], path: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}{name}.")
        else:
            flat[f"{path}{name}"] = repr(value)
    return flat
