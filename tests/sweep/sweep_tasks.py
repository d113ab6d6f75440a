"""Tasks that other processes can find, and what ends them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from multirobust.errors import TrainingError
from multirobust.sweep import Session


def write_name(folder: Path, name: str, session: Session) -> None:
    session.tell(f"{name} writes")
    with (folder / name).open("a") as stream:
        stream.write(f"{os.getpid()}\n")


def die_at_first(folder: Path, name: str, session: Session) -> None:
    """Kill this process unless it has been tried before."""
    write_name(folder, name, session)
    if len(attempts(folder, name)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def fail_at_first(folder: Path, name: str, session: Session) -> None:
    write_name(folder, name, session)
    if len(attempts(folder, name)) == 1:
        raise OSError("the disk went away")


def fail_always(folder: Path, name: str, session: Session) -> None:
    write_name(folder, name, session)
    raise RuntimeError("no such luck")


def refuse(folder: Path, name: str, session: Session) -> None:
    write_name(folder, name, session)
    raise TrainingError("the loss is NaN; lower the learning rate")


def attempts(folder: Path, name: str) -> list[str]:
    """Return the processes that have tried a task, in order."""
    path = folder / name
    return path.read_text().split() if path.exists() else []
