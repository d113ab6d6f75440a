"""Checkpoints: written whole or not at all, and never trusted before their digest fits.

A file is a line of magic, a line with the SHA-256 of the rest, and what `torch.save` wrote. The one
before stays as `checkpoint.previous.pt`, for the case that the newest is damaged. Tensors and plain
values only: loading runs no code of the file (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from multirobust.errors import CheckpointError
from multirobust.files import atomic_write

__all__ = ["load_checkpoint", "save_checkpoint"]

MAGIC = b"multirobust checkpoint 1\n"
NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint into a run folder; the former newest becomes the previous one.

    Raises:
        RunError: If it cannot be written; the checkpoints that are there stay.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    digest = hashlib.sha256(payload).hexdigest().encode() + b"\n"
    newest, fresh = folder / NEWEST, folder / "checkpoint.next.pt"

    def write(stream: Any) -> None:
        stream.write(MAGIC)
        stream.write(digest)
        stream.write(payload)

    atomic_write(fresh, write)
    if newest.exists():
        os.replace(newest, folder / PREVIOUS)
    os.replace(fresh, newest)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the newest whole checkpoint of a run folder, or None if it has none.

    A damaged newest one is named in a warning and the previous one is taken.

    Raises:
        CheckpointError: If checkpoints are there and none can be read.
    """
    problems = []
    for name in ("checkpoint.next.pt", NEWEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = _read(path, device)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{' '.join(problems)} Going on from {path}.", stacklevel=2)
        return content
    if problems:
        raise CheckpointError(
            f"{' '.join(problems)} No other checkpoint is there: remove the folder to start anew, or "
            "restore a checkpoint from a backup."
        )
    return None


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not data.startswith(MAGIC):
        raise CheckpointError(f"{path} is not a checkpoint of this program, or its start is lost.")
    start = len(MAGIC) + 65
    payload = memoryview(data)[start:]
    if hashlib.sha256(payload).hexdigest().encode() != data[len(MAGIC) : start - 1]:
        raise CheckpointError(f"{path} is truncated or damaged: its SHA-256 does not fit.")
    try:
        return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} does not hold plain tensors and values: {error}.") from error
