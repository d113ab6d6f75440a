"""A run folder belongs to one process at a time, and to one set of settings."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from multirobust.errors import InputError, RunError
from multirobust.files import remove_leftovers

__all__ = ["difference", "exclusive", "plain"]

NOTHING = "nothing"


@contextlib.contextmanager
def exclusive(folder: Path | None, *, doing: str = "trains", patience: float = 0) -> Iterator[None]:
    """Make the folder if it is missing, and keep other processes out of it meanwhile.

    The lock is `flock` on the file `.lock`, which stays. The operating system gives the lock back
    when the process ends, however it ends, so none is ever stale. Of several processes of one
    training, only the first may ask for it. What killed writers left in the folder is removed.

    Args:
        folder: None locks nothing.
        doing: What the message says of the other process.
        patience: Seconds to wait for it.

    Raises:
        RunError: If the folder cannot be written, or another process works in it.
    """
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a+b", buffering=0)
    except OSError as error:
        raise RunError(
            f"{folder}: this folder cannot be written: {error.strerror}. "
            "Choose a writable --output."
        ) from error
    with stream:
        locked = _locked_within(stream, patience, folder)
        if locked is False:
            raise RunError(
                f"{folder}: another process {doing} in this folder{_holder(stream)}; wait for it, "
                "or choose another --output."
            )
        if locked:
            _sign(stream)
            remove_leftovers(folder)
        yield


def _locked_within(stream: FileIO, patience: float, folder: Path) -> bool | None:
    """Return whether the lock was taken; None if there are no locks here."""
    end = time.monotonic() + patience
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the second from some network file systems
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        except OSError as error:
            warnings.warn(
                f"{folder}: this file system keeps no locks ({error.strerror}): make sure that no "
                "other process works in this folder.",
                stacklevel=4,
            )
            return None
        else:
            return True


def _sign(stream: FileIO) -> None:
    """Write into the lock who holds it; a full disk does not matter."""
    with contextlib.suppress(OSError):
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}\n".encode())


def _holder(stream: FileIO) -> str:
    """Return who holds the lock, if it says so in words of ours."""
    with contextlib.suppress(OSError):
        stream.seek(0)
        text = stream.read(200).decode("ascii", "replace").strip()
        if re.fullmatch(r"process \d+ on [\w.-]+", text, re.ASCII):
            return f" ({text})"
    return ""


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
