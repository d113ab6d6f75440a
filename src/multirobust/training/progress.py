"""What is seen while a run trains: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO, final

__all__ = ["LiveDisplay", "PlainDisplay", "ProgressDisplay", "Silent", "Status", "display_for"]


@dataclass(frozen=True)
class Status:
    """Where a training stands.

    Args:
        step: Steps done.
        steps: Steps of the whole training.
        epoch: Epochs begun, from 1 on.
        epochs: Epochs of the whole training.
        lr: Learning rate of the last step.
        images_per_second: Since the last status, of clean images.
        backwards: Forward-backward passes so far, per clean image seen.
        seconds_left: Estimate for the rest.
        terms: Means of the loss terms since the last status.
        passes: Where a training ends that ends by passes, per training image: its steps and epochs
            are estimates then, and 0 before the first step.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    lr: float
    images_per_second: float
    backwards: float
    seconds_left: float
    terms: Mapping[str, float] = field(default_factory=dict)
    passes: float | None = None

    @property
    def share(self) -> float:
        """Of the training that is done, in [0, 1]."""
        return self.step / self.steps if self.steps else 0.0

    @property
    def length(self) -> str:
        """Of the whole training, such as "100 steps"."""
        return f"{self.steps} steps" if self.passes is None else f"{self.passes:g} passes/image"

    def __str__(self) -> str:
        terms = " ".join(f"{name} {value:.3f}" for name, value in self.terms.items())
        gap, about = "  " if terms else "", "~" if self.passes is not None else ""
        return (
            f"epoch {self.epoch}/{about}{self.epochs}  step {self.step}/{about}{self.steps}  "
            f"{terms}{gap}lr {self.lr:.4f}  {self.images_per_second:.0f} images/s  "
            f"{self.backwards:.1f} passes/image  {_clock(self.seconds_left)} left"
        )


class ProgressDisplay(Protocol):
    """Where statuses go."""

    def start(self, title: str, status: Status) -> None:
        """Begin, or go on with, a training."""

    def update(self, status: Status) -> None:
        """Show the newest status."""

    def finish(self, text: str) -> None:
        """End with one closing line."""


@final
class Silent:
    """Shows nothing."""

    def start(self, title: str, status: Status) -> None:
        """See `ProgressDisplay`."""

    def update(self, status: Status) -> None:
        """See `ProgressDisplay`."""

    def finish(self, text: str) -> None:
        """See `ProgressDisplay`."""


@final
class PlainDisplay:
    """One line at a time, no more often than every few seconds.

    Args:
        stream: Where the lines go; standard error if left out.
        every: Seconds between two lines.
        clock: Tells the seconds.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stream = stream or sys.stderr
        self.every = every
        self.clock = clock
        self.title = ""
        self._last = 0.0

    def start(self, title: str, status: Status) -> None:
        """See `ProgressDisplay`."""
        self.title, self._last = title, self.clock()
        resumed = f", resumed at step {status.step}" if status.step else ""
        self._print(f"{title}: {status.length}{resumed}")

    def update(self, status: Status) -> None:
        """See `ProgressDisplay`."""
        now = self.clock()
        if now - self._last >= self.every:
            self._last = now
            self._print(f"{self.title}: {status}")

    def finish(self, text: str) -> None:
        """See `ProgressDisplay`."""
        self._print(f"{self.title}: {text}")

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a reader that went away does not end the training
            self.stream.write(line + "\n")
            self.stream.flush()


@final
class LiveDisplay:
    """A bar and a line of numbers that are redrawn in place, for a terminal.

    Args:
        stream: The terminal; standard error if left out.
    """

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.title = ""

    def start(self, title: str, status: Status) -> None:
        """See `ProgressDisplay`."""
        from rich.console import Console
        from rich.live import Live

        self.title = title
        console = Console(file=self.stream)
        self._live = Live(self._drawn(status), console=console, transient=True, auto_refresh=False)
        self._live.start()

    def update(self, status: Status) -> None:
        """See `ProgressDisplay`."""
        self._live.update(self._drawn(status), refresh=True)

    def finish(self, text: str) -> None:
        """See `ProgressDisplay`."""
        from rich.text import Text

        self._live.stop()
        self._live.console.print(Text(f"{self.title}: {text}"))

    def _drawn(self, status: Status) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 1))
        percent = Text(f"{100 * status.share:.0f} %")
        bar = ProgressBar(total=1.0, completed=status.share, width=24)
        head.add_row(Text(self.title, style="bold"), bar, percent)
        return Group(head, Text(str(status)))


def display_for(stream: TextIO | None = None) -> ProgressDisplay:
    """Return a live display if the stream (standard error) is a terminal, plain lines otherwise."""
    stream = sys.stderr if stream is None else stream
    return LiveDisplay(stream) if stream.isatty() else PlainDisplay(stream)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
