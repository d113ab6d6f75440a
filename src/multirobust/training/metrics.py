"""What a run writes down: deterministic metrics, the clock, and TensorBoard's events."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import warnings
from collections.abc import Iterator
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
        RunError: If the folder cannot be written; every method raises it.
    """

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._writing())
            opened.enter_context(_told_once())
            self._metrics = opened.enter_context(_reopened(folder / "metrics.jsonl", step))
            self._timing = opened.enter_context(_reopened(folder / "timing.jsonl", step))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
            opened.callback(self._events.close)
            self._opened = opened.pop_all()

    def write(self, step: int, metrics: dict[str, Any], timing: dict[str, float]) -> None:
        """Append one line to each log."""
        with self._writing():
            self._metrics.write(json.dumps({"step": step, **metrics}) + "\n")
            self._timing.write(json.dumps({"step": step, **timing}) + "\n")
            for name, value in {**metrics, **timing}.items():
                self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Bring everything to the disk; called before a checkpoint is written."""
        with self._writing():
            for stream in (self._metrics, self._timing):
                stream.flush()
                os.fsync(stream.fileno())
            self._events.flush()

    def close(self) -> None:
        """Flush and close; what cannot be flushed does not keep the others from closing."""
        self._opened.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.folder}: metrics cannot be written: {error.strerror or error}. Free some "
                "space or choose a writable --output; the checkpoints that are there stay."
            ) from error


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Keep TensorBoard's thread from printing the errors that it hands on as well."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        tensorboard = type(failed.thread).__module__.startswith("tensorboard.")
        if not (tensorboard and issubclass(failed.exc_type, OSError)):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _reopened(path: Path, step: int) -> TextIO:
    """Open a log for appending, cut after the last whole line that is not beyond the step.

    The lines that stay are not written again, so that no moment loses them.
    """
    if path.exists():
        os.truncate(path, _end(path.read_bytes(), step))
    return path.open("a", encoding="utf-8")


def _end(data: bytes, step: int) -> int:
    end = 0
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, LookupError, TypeError, RecursionError):
            break  # torn by a kill
        end += len(line)
    return end
