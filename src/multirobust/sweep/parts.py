"""One evaluation in many processes: blocks of images, and attacks that do not need each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from multirobust.errors import RunError
from multirobust.evaluation import Part
from multirobust.experiment import PartialWork
from multirobust.experiment.attacking import Elsewhere
from multirobust.sweep.engine import Ended, Engine, Session, Task

__all__ = ["attack_there", "evaluating_on"]


def evaluating_on(
    engine: Engine,
    *,
    tell: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Elsewhere:
    """Return what does the parts of an evaluation on an engine, for `experiment.evaluate_run`.

    Workers keep what they find in the folder of partial results, which must lie at the same path
    everywhere; the process that leads makes one whole of it.

    Args:
        engine: Where the parts run.
        tell: Receives a line for each tenth of the parts.
        stop: Whether the user wants to stop.
    """

    def elsewhere(work: PartialWork, parts: Sequence[Part], folder: Path) -> None:
        tasks = [
            Task(name=str(part), function=attack_there, arguments=(work, part, folder.resolve()))
            for part in parts
        ]
        done: list[Ended] = []

        def ended(task: Ended) -> None:
            before = 10 * len(done) // len(tasks)
            done.append(task)
            if 10 * len(done) // len(tasks) > before:
                tell(f"{len(done)} of {len(tasks)} parts of the evaluation have ended")

        failed = [e for e in engine.run(tasks, Session(tell=tell, stop=stop), ended) if e.error]
        if failed:
            first = failed[0]
            raise RunError(
                f"evaluation: {len(failed)} of {len(tasks)} parts failed in the end, such as "
                f"{first.name} ({first.error}). The others are kept; the same command goes on."
            )

    return elsewhere


def attack_there(work: PartialWork, part: Part, folder: Path, session: Session) -> None:
    """Do one part of an evaluation; see `PartialWork.attack`."""
    work.attack(part, folder)
