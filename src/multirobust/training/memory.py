"""Want of memory while training: one error that says what to lower."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from multirobust.errors import TrainingError
from multirobust.evaluation.runner import out_of_memory

__all__ = ["memory_told"]


@contextlib.contextmanager
def memory_told(batch_size: int, folder: Path | None) -> Iterator[None]:
    """Turn what PyTorch or Python raises for want of memory into one error.

    Args:
        batch_size: What the message names.
        folder: The run folder, if there is one.

    Raises:
        TrainingError: If memory ran out. Nothing is written: the checkpoints stay as they are.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        kept = (
            f" What was saved stays in {folder}: with more memory free, the same command goes on."
            if folder
            else ""
        )
        first = str(error).partition("\n")[0].strip() or type(error).__name__
        raise TrainingError(
            f"Out of memory with training.batch_size {batch_size}: {first[:200]}.{kept} Or lower "
            "training.batch_size or take a smaller model, with another --output, since that is "
            "another training; training.device 'cpu' has the memory of the machine."
        ) from error
