"""What is seen while an evaluation runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, final

__all__ = ["EvaluationDisplay", "LiveDisplay", "NoDisplay", "shown"]


class EvaluationDisplay(Protocol):
    """Is told what an evaluation does."""

    def attack(self, name: str, images: int) -> None:
        """An attack begins on so many images."""

    def advance(self, images: int, standing: int) -> None:
        """So many more images are done, of which so many still stand."""


@final
class NoDisplay:
    """Shows nothing."""

    def attack(self, name: str, images: int) -> None:
        """See `EvaluationDisplay`."""

    def advance(self, images: int, standing: int) -> None:
        """See `EvaluationDisplay`."""


@final
class LiveDisplay:
    """One line on a terminal: attack, share done, images left standing, rate, time left.

    An image stands until it is known to be broken.

    Args:
        title: Of the model, before the attack's name.
    """

    def __init__(self, title: str = ""):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._title, self._standing = title, 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:.0f}/{task.total:.0f} images"),
            TextColumn("{task.fields[standing]} stand"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=1, standing=0, rate="", visible=False)

    def __enter__(self) -> LiveDisplay:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def attack(self, name: str, images: int) -> None:
        """See `EvaluationDisplay`."""
        self._standing = images
        description = f"{self._title} {name}".strip()
        self._progress.reset(
            self._task,
            total=images,
            description=description,
            visible=True,
            standing=images,
            rate="",
        )

    def advance(self, images: int, standing: int) -> None:
        """See `EvaluationDisplay`."""
        self._standing -= images - standing
        self._progress.update(self._task, advance=images, standing=self._standing)
        speed = self._progress.tasks[0].speed
        rate = f"{speed:.1f}/s" if speed else ""
        self._progress.update(self._task, rate=rate)

    def print(self, line: str) -> None:
        """Print a line above the moving one."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def shown(
    title: str, tell: Callable[[str], None]
) -> Iterator[tuple[EvaluationDisplay, Callable[[str], None]]]:
    """Show progress where standard error is a terminal.

    Args:
        title: Of the model.
        tell: Prints a line where nothing moves.

    Yields:
        The display, and what prints a line while it is shown.
    """
    if not sys.stderr.isatty():
        yield NoDisplay(), tell
        return
    with LiveDisplay(title) as display:
        yield display, display.print
