"""Checkpoints: written whole or not at all, and never trusted before their digest fits.

A file is a line of magic, a line with the SHA-256 of the rest, and what `torch.save` wrote. The one
before stays as `checkpoint.previous.pt`, for the case that the newest is damaged. Tensors and plain
values only: loading runs no code of the file (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from multirobust.errors import CheckpointError, RunError
from multirobust.files import atomic_write

__all__ = [
    "check_counts",
    "check_numbers",
    "check_state",
    "load_checkpoint",
    "save_checkpoint",
]

MAGIC = b"multirobust checkpoint 1\n"
LARGEST_VIEW = 1 << 28
"""Bytes that a tensor may claim to have while its file repeats fewer."""

NEXT, NEWEST, PREVIOUS = "checkpoint.next.pt", "checkpoint.pt", "checkpoint.previous.pt"


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint into a run folder; the former newest becomes the previous one.

    It is first written whole as `checkpoint.next.pt`, which `load_checkpoint` prefers: at every
    moment a whole checkpoint lies under one of the three names, and a whole next is the newest.

    Raises:
        RunError: If it cannot be written; the checkpoints that are there stay.
        CheckpointError: If the content holds more than tensors and plain values.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    _decoded(payload, folder / NEWEST)
    digest = hashlib.sha256(payload).hexdigest().encode() + b"\n"

    def write(stream: Any) -> None:
        stream.write(MAGIC)
        stream.write(digest)
        stream.write(payload)

    atomic_write(folder / NEXT, write)
    try:
        if (folder / NEWEST).exists():
            os.replace(folder / NEWEST, folder / PREVIOUS)
        os.replace(folder / NEXT, folder / NEWEST)
    except OSError as error:
        raise RunError(
            f"{folder}: the new checkpoint is written, but cannot take its name: {error.strerror}. "
            "It is kept; choose a folder whose files may be renamed."
        ) from error


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the newest whole checkpoint of a run folder, or None if it has none.

    A damaged newest one is named in a warning and the one before is taken.

    Args:
        folder: The run folder.
        device: Where the tensors go.

    Raises:
        CheckpointError: If checkpoints are there and none can be read.
    """
    problems = []
    for name in (NEXT, NEWEST, PREVIOUS):
        path = folder / name
        try:
            content = _read(path, device)
        except FileNotFoundError:
            continue
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{' '.join(problems)} Going on from {path}.", stacklevel=2)
        return content
    if problems:
        raise CheckpointError(
            f"{' '.join(problems)} No other checkpoint is there: remove the folder to start anew, "
            "or restore a checkpoint from a backup."
        )
    return None


def check_state(content: Mapping[str, Any], steps: int | None) -> None:
    """Raise unless the counts of a checkpoint can be those of a training: a file may say anything.

    Args:
        content: Of a checkpoint.
        steps: Of the whole training; None if it ends by passes.

    Raises:
        ValueError: If a count is missing, is no number, or is out of range.
    """
    check_counts(content, "step", "seen", "forwards", "backwards")
    check_numbers(content, "seconds", "lr")
    if steps is not None and content["step"] > steps:
        raise ValueError(f"'step' must be at most {steps}, got {content['step']}")


def check_counts(content: Mapping[str, Any], *names: str) -> None:
    """Raise a ValueError unless these are whole numbers, 0 or more."""
    for name in names:
        value = content.get(name)
        if type(value) is not int or value < 0:
            raise ValueError(f"{name!r} must be a count, got {_told(value)}")


def check_numbers(content: Mapping[str, Any], *names: str) -> None:
    """Raise a ValueError unless these are finite numbers, 0 or more."""
    for name in names:
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name!r} must be a number, got {_told(value)}")
        if not 0 <= value < math.inf:
            raise ValueError(f"{name!r} must be finite and 0 or more, got {_told(value)}")


def _told(value: object) -> str:
    return str(value)[:40] if isinstance(value, (int, float)) else f"a {type(value).__name__}"


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not data.startswith(MAGIC):
        raise CheckpointError(f"{path} is not a checkpoint of this program, or its start is lost.")
    start = len(MAGIC) + 65
    payload = memoryview(data)[start:]
    if hashlib.sha256(payload).hexdigest().encode() != data[len(MAGIC) : start - 1]:
        raise CheckpointError(f"{path} is truncated or damaged: its SHA-256 does not fit.")
    return _decoded(payload, path, device)


def _decoded(payload: memoryview, path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    try:
        content = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except Exception as error:  # a foreign file can break the reader in any way
        raise CheckpointError(
            f"{path} would hold more than tensors and plain values, which is never loaded: {error}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    try:
        tensors = list(_tensors_in(content))
    except RecursionError:
        raise CheckpointError(f"{path} is nested without end.") from None
    for tensor in tensors:
        size = tensor.nelement() * tensor.element_size()
        if size > max(LARGEST_VIEW, tensor.untyped_storage().nbytes()):
            raise CheckpointError(
                f"{path} has a tensor of shape {tuple(tensor.shape)} without the numbers for it."
            )
    return content


def _tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors_in(value)
