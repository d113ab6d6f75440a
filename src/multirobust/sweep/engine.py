"""Where tasks run: one after the other in this process, or wherever another engine takes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from multirobust.errors import InputError, Interrupted, MultirobustError, RunError
from multirobust.training import ProgressDisplay

__all__ = [
    "Attempt",
    "Ended",
    "Engine",
    "LocalEngine",
    "Session",
    "Task",
    "attempt",
    "check_counts",
    "threads",
]


@final
@dataclass(frozen=True, kw_only=True)
class Session:
    """What a task may use of the process that it runs in.

    Args:
        tell: Receives lines on what happens.
        stop: Whether the user wants to stop.
        display: Makes the display of a training.
    """

    tell: Callable[[str], None] = lambda line: None
    stop: Callable[[], bool] = lambda: False
    display: Callable[[], ProgressDisplay | None] = lambda: None


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """A call that may be made in another process, and made again if that process dies.

    Args:
        name: For messages.
        function: Of a module, so that another process finds it; called with the arguments and a
            `Session`. What it has done it keeps on the disk: called again, it goes on.
        arguments: Values that can be pickled.
    """

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...] = ()


@final
@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a task ended.

    Args:
        name: Of the task.
        attempts: How often it was begun.
        error: Why it failed in the end; empty if it did not.
        lines: What it told in its last attempt, if it ran in another process.
    """

    name: str
    attempts: int
    error: str = ""
    lines: tuple[str, ...] = ()


class Engine(Protocol):
    """Runs tasks; the others go on when one fails."""

    def describe(self) -> str:
        """Say in a few words where tasks run, and with what."""
        ...

    def open(self) -> contextlib.AbstractContextManager[None]:
        """Get ready once for several calls of `run`."""
        ...

    def run(
        self,
        tasks: Sequence[Task],
        session: Session,
        ended: Callable[[Ended], None] = lambda ended: None,
    ) -> list[Ended]:
        """Run tasks, and those that fail again unless trying again cannot help.

        Args:
            tasks: With different names.
            session: Of this process.
            ended: Is told of each task that ended, as soon as it has.

        Returns:
            How they ended, in the order of the tasks.

        Raises:
            Interrupted: If the session was stopped.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """One task after the other, in this process.

    Args:
        cpus: Threads that a task computes with; None leaves them as they are.
        retries: How often a task that failed is begun again.
    """

    cpus: int | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        check_counts(cpus=self.cpus, retries=self.retries)

    def describe(self) -> str:
        """See `Engine`."""
        with_threads = f", CPU threads: {self.cpus}" if self.cpus else ""
        return f"one after the other in this process{with_threads}"

    def open(self) -> contextlib.AbstractContextManager[None]:
        """See `Engine`."""
        return threads(self.cpus)

    def run(
        self,
        tasks: Sequence[Task],
        session: Session,
        ended: Callable[[Ended], None] = lambda ended: None,
    ) -> list[Ended]:
        """See `Engine`."""
        results = []
        with self.open():
            for task in tasks:
                results.append(self._ended(task, session))
                ended(results[-1])
        return results

    def _ended(self, task: Task, session: Session) -> Ended:
        count = 0
        while True:
            count += 1
            found = attempt(task, session)
            if not found.error or found.final or count > self.retries:
                return Ended(name=task.name, attempts=count, error=found.error)
            session.tell(f"{task.name}: failed and is tried again ({found.error})")


@final
@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How one attempt of a task ended.

    Args:
        error: Why it failed; empty if it did not.
        final: Whether another attempt would fail the same way.
        lines: What it told.
    """

    error: str = ""
    final: bool = False
    lines: tuple[str, ...] = ()


def attempt(task: Task, session: Session) -> Attempt:
    """Call the function of a task and say how it ended.

    What the package raises on purpose is final: the same input fails the same way. Only of files
    and folders, and of anything else, there is hope.

    Raises:
        Interrupted: If the session was stopped.
    """
    try:
        task.function(*task.arguments, session)
    except Interrupted:
        raise
    except RunError as error:
        return Attempt(error=str(error))
    except MultirobustError as error:
        return Attempt(error=str(error), final=True)
    except Exception as error:
        return Attempt(error=f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:500])
    return Attempt()


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads meanwhile; sums depend on it in their last bits."""
    import torch

    before = torch.get_num_threads()
    try:
        if count is not None and count != before:
            torch.set_num_threads(count)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def check_counts(*, cpus: int | None, retries: int) -> None:
    """Raise unless both are whole numbers that make sense.

    Raises:
        InputError: It names the argument.
    """
    if cpus is not None and cpus < 1:
        raise InputError(f"cpus: a task needs at least one CPU, got {cpus}.")
    if retries < 0:
        raise InputError(f"retries: must be at least 0, got {retries}; 0 tries once.")
