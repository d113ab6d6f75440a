"""What a run writes down: deterministic metrics, the clock, and TensorBoard's events."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any, TextIO

from multirobust.errors import RunError

__all__ = ["MetricsLog"]


class MetricsLog:
    """Three logs of one run folder.

    `metrics.jsonl` holds what the seed determines, so that a resumed run ends with the same bytes;
    `timing.jsonl` holds what the clock says; `tensorboard/` holds both.

    Args:
        folder: The run folder.
        step: Where the run resumes; later lines of a killed run are dropped.

    Raises:
        RunError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        try:
            self._metrics = _reopened(folder / "metrics.jsonl", step)
            self._timing = _reopened(folder / "timing.jsonl", step)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise RunError(
                f"{folder}: metrics cannot be written: {error.strerror}. Choose a writable --output."
            ) from error

    def write(self, step: int, metrics: dict[str, Any], timing: dict[str, float]) -> None:
        """Append one line to each log."""
        self._metrics.write(json.dumps({"step": step, **metrics}) + "\n")
        self._timing.write(json.dumps({"step": step, **timing}) + "\n")
        for name, value in {**metrics, **timing}.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Bring everything to the disk; called before a checkpoint is written."""
        for stream in (self._metrics, self._timing):
            stream.flush()
            os.fsync(stream.fileno())
        self._events.flush()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._metrics.close()
        self._timing.close()
        self._events.close()


def _reopened(path: Path, step: int) -> TextIO:
    """Open a log for appending, without the lines that came after the step."""
    kept = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break  # the torn last line of a killed run
    stream = path.open("w", encoding="utf-8")
    stream.writelines(kept)
    stream.flush()
    return stream
