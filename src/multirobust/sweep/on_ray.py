"""Tasks on Ray: worker processes of this machine, or of all machines of a cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from multirobust.errors import InputError, Interrupted, RunError
from multirobust.sweep.engine import (
    Attempt,
    Ended,
    Session,
    Task,
    attempt,
    check_counts,
    threads,
)

__all__ = ["Place", "RayEngine", "attempt_there"]

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what the cluster logs is not for this terminal
}
_STORE = 100 * 2**20
"""Bytes of shared memory of a Ray of our own: results go through files."""


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """What a worker needs to be like the process that leads.

    Args:
        folder: The working folder, which relative paths start from.
        cpus: Threads to compute with.
        gpus: GPUs that Ray gives; with none, the worker sees none.
        version: Of the package.
    """

    folder: Path
    cpus: int
    gpus: float
    version: str


@final
@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Tasks in worker processes that Ray places where there is room.

    Args:
        address: Of a running cluster, such as "auto" on one of its machines or "10.0.0.1:6379";
            None starts Ray on this machine alone, and ends it.
        cpus: CPUs that a task reserves, and threads that it computes with.
        gpus: GPUs that a task reserves, a part of one below 1; None takes one where the cluster
            has any.
        retries: How often a task is begun again that failed, or whose worker died.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        check_counts(cpus=self.cpus, retries=self.retries)
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus % 1)):
            raise InputError(
                f"gpus: must be a part of one, such as 0.5, or a whole number, got {self.gpus:g}."
            )

    def describe(self) -> str:
        """See `Engine`."""
        where = f"the cluster at {self.address}" if self.address else "this machine"
        return f"with Ray on {where}, CPU threads: {self.cpus}"

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """See `Engine`.

        Raises:
            InputError: If Ray is not installed, or no machine has what a task needs.
            RunError: If there is no cluster at the address.
        """
        ray = _ray()
        with threads(self.cpus):
            if ray.is_initialized():
                yield
                return
            try:
                _start(ray, self.address)
                self._reserved(ray)
                yield
            finally:
                ray.shutdown()

    def run(
        self,
        tasks: Sequence[Task],
        session: Session,
        ended: Callable[[Ended], None] = lambda ended: None,
    ) -> list[Ended]:
        """See `Engine`."""
        results: dict[str, Ended] = {}
        with self.open():
            reserved = self._reserved(_ray())
            waiting = _Waiting(_ray(), reserved, self._place(reserved["num_gpus"]))
            try:
                for task in tasks:
                    waiting.begin(task, 1)
                while waiting:
                    if session.stop():
                        raise Interrupted(
                            "Interrupted; what is finished is kept. Run the same command again to "
                            "go on."
                        )
                    for task, count, found in waiting.some():
                        if found.error and not found.final and count <= self.retries:
                            session.tell(f"{task.name}: failed and is tried again ({found.error})")
                            waiting.begin(task, count + 1)
                            continue
                        results[task.name] = Ended(
                            name=task.name, attempts=count, error=found.error, lines=found.lines
                        )
                        ended(results[task.name])
            finally:
                waiting.cancel()
        return [results[task.name] for task in tasks]

    def _place(self, gpus: float) -> Place:
        here = version("multirobust")
        return Place(folder=Path.cwd(), cpus=self.cpus, gpus=gpus, version=here)

    def _reserved(self, ray: Any) -> dict[str, float]:
        """Return what a task reserves.

        Raises:
            InputError: If no machine has as much.
        """
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = {name: max(m.get(name, 0) for m in machines) for name in ("CPU", "GPU")}
        gpus = min(1.0, most["GPU"]) if self.gpus is None else self.gpus
        for name, wanted in (("CPU", self.cpus), ("GPU", gpus)):
            if wanted > most[name]:
                raise InputError(
                    f"{name.lower()}s: a task wants {wanted:g}, and no machine has more than "
                    f"{most[name]:g}; lower --{name.lower()}s, or join a larger machine."
                )
        return {"num_cpus": self.cpus, "num_gpus": gpus}


@final
class _Waiting:
    """The tasks that were begun and have not ended."""

    def __init__(self, ray: Any, reserved: Mapping[str, float], place: Place):
        self._ray, self._place = ray, place
        self._remote, self._reserved = ray.remote(attempt_there), dict(reserved)
        self._begun: dict[Any, tuple[Task, int]] = {}

    def __len__(self) -> int:
        return len(self._begun)

    def begin(self, task: Task, count: int) -> None:
        remote = self._remote.options(name=task.name, max_retries=0, **self._reserved)
        self._begun[remote.remote(task, self._place)] = task, count

    def some(self) -> Iterator[tuple[Task, int, Attempt]]:
        """Yield the tasks that ended, within half a second, with which attempt it was."""
        done, _ = self._ray.wait(list(self._begun), timeout=0.5)
        for reference in done:
            task, count = self._begun.pop(reference)
            try:
                found = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                found = Attempt(error=f"the worker could not begin: {_short(error.cause)}")
            except self._ray.exceptions.RayError as error:
                found = Attempt(error=f"its worker died: {_short(error)}")
            yield task, count, found

    def cancel(self) -> None:
        for reference in self._begun:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(reference, force=True)


def attempt_there(task: Task, place: Place) -> Attempt:
    """Make one attempt of a task in this worker.

    Args:
        task: What to do.
        place: What the leading process is like.
    """
    import torch

    if place.version != version("multirobust"):
        return Attempt(
            error=f"a worker has multirobust {version('multirobust')}, the leading process "
            f"{place.version}; install one version everywhere.",
            final=True,
        )
    if place.folder.is_dir():
        os.chdir(place.folder)
    if not place.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(place.cpus)
    lines: list[str] = []
    found = attempt(task, Session(tell=lines.append))
    return Attempt(error=found.error, final=found.final, lines=tuple(lines))


def _ray() -> Any:
    """Return the library, which says nothing unasked.

    Raises:
        InputError: If it is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.exceptions
    except ImportError as error:
        raise InputError(
            "engine: 'ray' needs the library Ray: pip install 'multirobust[ray]', or use "
            "--engine local."
        ) from error
    return ray


def _start(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start Ray here, and leave the signals to this process.

    Raises:
        RunError: If that fails.
    """
    _check_reachable(address)
    ours = {} if address else {"object_store_memory": _STORE, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address=address or "local", log_to_driver=False, logging_level="CRITICAL", **ours
            )
    except Exception as error:
        raise RunError(
            f"address: no Ray cluster answers at {address!r} ({_short(error)}); start one with "
            "`ray start --head`, or leave --address out."
            if address
            else f"engine: Ray could not be started here: {_short(error)}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _check_reachable(address: str | None) -> None:
    """Raise within seconds where nothing listens: Ray itself would try for minutes.

    Raises:
        RunError: If nothing does.
    """
    host, colon, port = (address or "").rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"address: no Ray cluster answers at {address!r} ({error}); start one with `ray start "
            "--head`, or leave --address out."
        ) from error


def _short(error: BaseException) -> str:
    """Return the first sentence of an error's message."""
    return f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0][:200]
