"""Work in slices of minutes: when to stop, what the exit code says, and results that stay whole."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from multirobust.errors import RunError
from multirobust.files import atomic_write

__all__ = ["AGAIN", "DONE", "Deadline", "read", "write"]

DONE, AGAIN = 0, 75
"""Exit codes: everything is done, or time ran out and the same command goes on (EX_TEMPFAIL)."""


@final
class Deadline:
    """A moment before which work ends, with room for one more lap of it.

    Args:
        minutes: From now; None never ends.
        clock: Tells the seconds.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._end = math.inf if minutes is None else clock() + 60 * minutes
        self._longest = 0.0
        self._mark = clock()

    def left(self) -> float:
        """Return the seconds that are left, negative when it is over."""
        return self._end - self._clock()

    def lap(self) -> bool:
        """End a lap; tell whether one more, as long as the longest so far, would be too late."""
        now = self._clock()
        self._longest, self._mark = max(self._longest, now - self._mark), now
        return now + self._longest >= self._end


def read(path: Path) -> dict[str, Any] | None:
    """Return what `write` wrote, or None if nothing is there.

    Raises:
        RunError: If the file cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}; choose another file.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no results of this script; choose another file.")
    return content


def write(path: Path, content: dict[str, Any]) -> None:
    """Write results whole or not at all; the folder is made if it is missing.

    Raises:
        RunError: If it cannot be written; what was there stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{path.parent} cannot be made: {error.strerror}; choose another folder."
        ) from error
    atomic_write(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
