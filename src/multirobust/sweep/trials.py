"""Sweeps: every run of a recipe at every point of a grid, trained and attacked, in one table."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from multirobust.config import load_recipe
from multirobust.data import Data
from multirobust.errors import Interrupted, MultirobustError, RunError
from multirobust.evaluation.course import split_digest
from multirobust.experiment import (
    Run,
    evaluate_all,
    images_of,
    load_data,
    prepare,
    result_of,
    train_all,
)
from multirobust.experiment.runs import MARKER
from multirobust.files import atomic_write
from multirobust.report import RunResult, Table, comparison, markdown, text, write_record
from multirobust.sweep.engine import Ended, Engine, Session, Task
from multirobust.sweep.grid import points_of

__all__ = ["Sweep", "SweepResult", "Trial", "run_trial"]


@final
@dataclass(frozen=True)
class Trial:
    """One run at one point of the grid.

    Args:
        run: With an opened folder.
        point: Name of the point; empty where nothing varies.
    """

    run: Run
    point: str = ""

    @property
    def name(self) -> str:
        """For messages, such as "sat-s0", or "training.peak_lr=0.1/sat-s0"."""
        return f"{self.point}/{self.run.name}" if self.point else self.run.name

    @property
    def row(self) -> str:
        """The row of the table, which all seeds share."""
        return f"{self.run.defense} ({self.point})" if self.point else self.run.defense

    def done(self, data: Data) -> bool:
        """Whether the run has been trained, and attacked on these images as its recipe says."""
        images = images_of(data, "test")
        seen = images.first(min(self.run.recipe.evaluation.limit or len(images), len(images)))
        try:
            manifest = result_of(self.run).outcomes.manifest
        except MultirobustError:
            return False
        return manifest.get("split_digest") == split_digest(seen)


@final
@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep ended in.

    Args:
        results: Of the trials that ended well, in the order of the trials.
        failed: The others.
    """

    results: tuple[RunResult, ...]
    failed: tuple[Ended, ...] = ()

    @property
    def table(self) -> Table:
        """The comparison of all rows.

        Raises:
            InputError: If no trial ended well.
        """
        return comparison(self.results)

    def __str__(self) -> str:
        return text(self.table).rstrip("\n")

    def write(self, folder: Path, *, command: str = "") -> list[Path]:
        """Write `sweep.md` and `sweep.json`, each whole or not.

        Raises:
            RunError: If a file cannot be written.
        """
        paths = [folder / "sweep.md", folder / "sweep.json"]
        atomic_write(paths[0], markdown(self.table).encode())
        write_record(self.results, paths[1], command=command)
        return paths

    def check(self) -> None:
        """Raise if a trial failed.

        Raises:
            RunError: It names each with its error.
        """
        if self.failed:
            told = "; ".join(f"{e.name} (attempts: {e.attempts}): {e.error}" for e in self.failed)
            raise RunError(
                f"{len(self.failed)} of {len(self.failed) + len(self.results)} trials failed: "
                f"{told} The others are finished; the same command tries these again."
            )


@final
@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All runs of a recipe, at every point of a grid.

    Trials lie in `output/<run>`, or `output/<point>/<run>` with a grid, as `train` makes them.

    Args:
        recipe: A shipped recipe's name, or a TOML file.
        output: Folder of all runs; where workers run elsewhere, it lies at the same path there.
        overrides: Changes of the recipe at every point.
        grid: What varies; see `points_of`.
    """

    recipe: str
    output: Path
    overrides: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()

    def trials(self) -> list[tuple[Trial, bool]]:
        """Open the folders of all trials, and say of each whether it is done.

        Raises:
            ConfigError: If a setting breaks a rule; no folder is made.
            DataError: If the data are missing.
            RunError: If a folder holds something else or cannot be written.
        """
        points = points_of(self.grid)
        recipes = [load_recipe(self.recipe, [*self.overrides, *p.overrides]) for p in points]
        found: list[tuple[Trial, bool]] = []
        for point, recipe in zip(points, recipes, strict=True):
            runs, data = prepare(recipe, self.output.resolve() / point.name)
            trials = [Trial(run, point.name) for run in runs]
            found += [(trial, trial.done(data)) for trial in trials]
        return found

    def run(self, engine: Engine, session: Session) -> SweepResult:
        """Train and attack what has not been, and gather the results of all.

        Args:
            engine: Where the trials run.
            session: Of this process.

        Raises:
            Interrupted: If the session was stopped; what is done is kept.
        """
        trials = self.trials()
        ready = [trial for trial, done in trials if done]
        tasks = [
            Task(name=trial.name, function=run_trial, arguments=(trial,))
            for trial, done in trials
            if not done
        ]
        session.tell(f"{len(trials)} trials, {len(ready)} of them done before; {engine.describe()}")

        def told(ended: Ended) -> None:
            for line in ended.lines:
                session.tell(line)
            session.tell(f"{ended.name}: {'failed: ' + ended.error if ended.error else 'done'}")

        ends: Mapping[str, Ended] = (
            {ended.name: ended for ended in engine.run(tasks, session, told)} if tasks else {}
        )
        failed = tuple(ended for ended in ends.values() if ended.error)
        lost = {ended.name for ended in failed}
        return SweepResult(
            results=tuple(
                replace(result_of(trial.run), name=trial.row)
                for trial, _ in trials
                if trial.name not in lost
            ),
            failed=failed,
        )


def run_trial(trial: Trial, session: Session) -> None:
    """Train and attack one run, from where it stands.

    Args:
        trial: What to do.
        session: Of this process.

    Raises:
        Interrupted: If the session was stopped; the run is saved.
        RunError: If the folder of the run is not the one that the leading process sees.
    """
    run = trial.run
    if not (run.folder / MARKER).is_file():
        raise RunError(
            f"{run.folder} is not there on {platform.node()}; the folder of a sweep must lie at "
            "the same path on every machine. Choose an --output that all of them share."
        )
    prefix = f"{trial.point}/" if trial.point else ""

    def tell(line: str) -> None:
        session.tell(prefix + line)

    data = load_data(run.recipe.data)
    train_all([run], data, display=session.display, stop=session.stop, tell=tell)
    if session.stop():
        raise Interrupted("Interrupted between two trials; run the same command again to go on.")
    evaluate_all([run], tell=tell)
