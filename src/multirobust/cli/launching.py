"""One training on several processes of this machine: start them, watch them, end them together.

The command is started once more for each device, with the environment variables that torchrun sets.
Rank 0 speaks for all: it has this process's terminal. How a rank ended it writes into a file, so
that one error is told, that of the rank that failed, and not what the others say of its loss.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import final

from multirobust import errors

__all__ = ["Ranks", "launch", "work"]

GRACE = 15.0
"""Seconds that the others have to end once one has failed."""

_ENDING = "MULTIROBUST_ENDING"


def launch(devices: int, arguments: list[str]) -> None:
    """Run the command line with these arguments on several processes, and wait for all.

    Ctrl-C and SIGTERM go to each, which saves; a second one ends them at once. If this process is
    killed, they end too.

    Args:
        devices: How many.
        arguments: Of the command line, without the name of the program.

    Raises:
        MultirobustError: Of the kind that a rank to fail has told, or a TrainingError if it
            could not tell.
    """
    with tempfile.TemporaryDirectory(prefix="multirobust-") as folder:
        started = Ranks(devices, arguments, Path(folder))
        with started.stopping_with_this():
            started.wait()
        problem = started.problem()
    if problem is not None:
        raise problem


@final
class Ranks:
    """The processes of one launch.

    Args:
        count: How many.
        arguments: Of the command line.
        folder: For what they say.
    """

    def __init__(self, count: int, arguments: list[str], folder: Path):
        self.folder = folder
        self.failed: set[int] = set()
        self.ended_by_this: set[int] = set()
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), _ENDING: str(self._ending(rank))}
            self.processes.append(
                self._start(rank, arguments, {**threads, **os.environ, **shared, **place})
            )

    def _start(
        self, rank: int, arguments: list[str], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        code = "from multirobust.cli.launching import work; work()"
        with contextlib.ExitStack() as stack:
            said = stack.enter_context(self._said(rank).open("wb"))
            return subprocess.Popen(
                [sys.executable, "-P", "-c", code, *arguments],
                stdin=subprocess.PIPE,
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else said,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal reaches this process alone
            )

    def wait(self) -> None:
        """Wait until all have ended; once one has failed, the others are ended too."""
        deadline: float | None = None
        while any(process.poll() is None for process in self.processes):
            self._note()
            if self.failed and deadline is None:
                deadline = time.monotonic() + GRACE
            if deadline is not None and time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            time.sleep(0.05)
        self._note()

    def send(self, number: int) -> None:
        """Send a signal to those that run."""
        for rank, process in enumerate(self.processes):
            if process.poll() is None:
                if number == signal.SIGKILL:
                    self.ended_by_this.add(rank)
                process.send_signal(number)

    def _note(self) -> None:
        """Remember which ranks have failed."""
        for rank, process in enumerate(self.processes):
            if process.poll() not in (None, 0):
                self.failed.add(rank)

    @contextlib.contextmanager
    def stopping_with_this(self) -> Iterator[None]:
        """Hand on what asks this process to end, and leave nothing running."""
        asked = False

        def hand_on(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            self.send(signal.SIGKILL if asked else signal.SIGINT)
            asked = True

        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, hand_on) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
            self.send(signal.SIGKILL)
            for process in self.processes:
                process.wait()

    def problem(self) -> errors.MultirobustError | None:
        """Return the error of the rank that is to blame, or None if all went well."""
        chosen = sorted(rank for rank in self.failed if rank not in self.ended_by_this)
        found = [self._problem(rank) for rank in chosen]
        return min(found, key=lambda pair: pair[0])[1] if found else self._killed()

    def _killed(self) -> errors.MultirobustError | None:
        if not self.ended_by_this:
            return None
        return errors.Interrupted("Interrupted; what was saved before is kept.")

    def _problem(self, rank: int) -> tuple[int, errors.MultirobustError]:
        """Return how much a rank's error says, the least first, and the error."""
        code, count = self.processes[rank].returncode, len(self.processes)
        try:
            told = json.loads(self._ending(rank).read_text("utf-8"))
        except (OSError, ValueError):
            told = None
        if told is not None:
            kind = getattr(errors, told["kind"], errors.RunError)
            lost = told["kind"] == "TrainingError" and "has lost another one" in told["message"]
            text = told["message"]
            return 2 if lost else 0, kind([text] if kind is errors.ConfigError else text)
        way = "The last checkpoint stays: run the same command again to go on, on any number of "
        if code < 0:
            name = signal.Signals(-code).name
            text = f"Rank {rank} of {count} was killed ({name}), perhaps for want of memory. {way}"
            return 1, errors.TrainingError(f"{text}devices.")
        said = self._said(rank).read_text("utf-8", errors="replace").strip().splitlines()
        last = f": {said[-1]}" if said else ""
        text = f"Rank {rank} of {count} ended with code {code}{last}. {way}devices."
        return 1, errors.TrainingError(text)

    def _ending(self, rank: int) -> Path:
        return self.folder / f"{rank}.json"

    def _said(self, rank: int) -> Path:
        return self.folder / f"{rank}.txt"


def work() -> None:
    """Be one of the ranks: run the command line, and write down an error instead of telling it."""
    from multirobust.cli.common import app

    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    ending = Path(os.environ[_ENDING])
    try:
        app(prog_name="multirobust")
    except errors.MultirobustError as error:
        told = {"kind": type(error).__name__, "message": str(error)}
        ending.write_text(json.dumps(told), "utf-8")
        _leave(1)
    except SystemExit as leaving:
        if leaving.code == 130:  # Ctrl-C before the training began
            told = {"kind": "Interrupted", "message": "Interrupted before the training began."}
            ending.write_text(json.dumps(told), "utf-8")
        _leave(leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code)))


def _leave(code: int) -> None:
    """End without the farewell to other ranks, which waits for them, and may do so for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_the_launcher() -> None:
    """Wait for the end of standard input, which is that of the launcher."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
