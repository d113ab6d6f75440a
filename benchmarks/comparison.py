"""What a row of `make bench` says: ours, a reference and a limit, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

__all__ = ["Row", "alternate", "header", "processor_seconds"]


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison. Each entry of a tuple is of one round, in which all three ran in turn.

    Args:
        part: The part of the benchmark.
        model: The network, or what else the case was measured on.
        case: What was measured.
        unit: Of the numbers: "s", "ms" or "MB".
        ours: What ours took.
        reference_name: What it is compared with.
        reference: What that took.
        limit_name: What nothing can do without.
        limit: What that took.
        goal: The most that `goal_of` should be; None if there is none.
        goal_of: The ratio that has the goal: "reference" or "limit".
    """

    part: str
    model: str
    case: str
    unit: str
    ours: tuple[float, ...]
    reference_name: str
    reference: tuple[float, ...]
    limit_name: str
    limit: tuple[float, ...]
    goal: float | None = None
    goal_of: str = "limit"

    def ratio(self, to: str) -> float:
        """Return the median over the rounds of ours to the "reference" or the "limit"."""
        return statistics.median(self._ratios(to))

    def _ratios(self, to: str) -> list[float]:
        pairs = zip(self.ours, getattr(self, to), strict=True)
        return [ours / other for ours, other in pairs]

    def reached(self) -> bool | None:
        """Tell whether the goal is reached, None if there is none."""
        return None if self.goal is None else self.ratio(self.goal_of) <= self.goal

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values: medians, and the ratios of all rounds."""
        facts = asdict(self)
        for name in ("ours", "reference", "limit"):
            facts[name] = statistics.median(getattr(self, name))
        for name in ("reference", "limit"):
            facts[f"of_{name}"] = self.ratio(name)
            facts[f"of_{name}_by_round"] = [round(ratio, 4) for ratio in self._ratios(name)]
        return {**facts, "reached": self.reached()}

    def line(self) -> str:
        """Return it as a line of the printed table."""
        ours, reference, limit = (
            f"{statistics.median(getattr(self, name)):9.4g}"
            for name in ("ours", "reference", "limit")
        )
        goal = ""
        if self.goal is not None:
            word = "reached" if self.reached() else "missed"
            goal = f"  {self.goal:.2f} x {self.goal_of} {word}"
        return (
            f"{self.part:<12} {self.model:<17} {self.case:<42} {ours} {self.unit:<2} "
            f"{reference} {self.ratio('reference'):6.2f} {limit} {self.ratio('limit'):6.2f}{goal}"
        )


def header() -> str:
    """Return the line above the printed table."""
    names = ("part", "measured on", "case", "ours", "reference", "ratio", "limit", "ratio")
    widths = "{:<12} {:<17} {:<42} {:>9}    {:>9} {:>6} {:>9} {:>6}"
    return widths.format(*names) + "  goal"


def processor_seconds(task: Callable[[], object]) -> float:
    """Return the seconds of a run: of processor time with one thread, else of wall time."""
    read = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = read()
    task()
    return read() - start


def alternate(
    tasks: Mapping[str, Callable[[], object]], rounds: int, *, warm: Iterable[str] | None = None
) -> dict[str, tuple[float, ...]]:
    """Time tasks in turn.

    Args:
        tasks: By name.
        rounds: How often each runs.
        warm: Those that run once untimed before; None runs all.
    """
    for name in tasks if warm is None else warm:
        tasks[name]()
    found = [{name: processor_seconds(task) for name, task in tasks.items()} for _ in range(rounds)]
    return {name: tuple(seconds[name] for seconds in found) for name in tasks}
