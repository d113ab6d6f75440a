"""The runs behind a table or figure: trained and evaluated once, wherever else they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from multirobust.config import DataConfig
from multirobust.data import Data
from multirobust.evaluation import shown
from multirobust.experiment import (
    Run,
    evaluate_run,
    load_data,
    open_run,
    plan,
    result_of,
    train_all,
)
from multirobust.experiment.building import check_corruptions, pinned
from multirobust.experiment.results import evaluated
from multirobust.experiment.unlabeled import with_unlabeled
from multirobust.recipes.progress import Progress
from multirobust.recipes.reproduction import Reproduction, RowOf
from multirobust.recipes.scales import Scale
from multirobust.report import RunResult

__all__ = ["Study"]


@final
@dataclass(frozen=True, kw_only=True)
class Study:
    """The models of a table or figure, at one scale, with some seeds.

    Models are kept by what they were trained with, so tables that share a row share its models,
    and an interrupted study goes on where it stopped.

    Args:
        reproduction: The table or figure.
        scale: Data set and network.
        seeds: Of the trainings.
        output: Folder of all studies; the runs of a scale lie in a folder of its name.
        overrides: Further changes of every row's recipe.
        suite: In place of that of the reproduction.
        limit: Use only the first test images.
        defenses: Only the rows of these defenses; empty means all.
        names: Only the rows of these names, and those of the defenses; empty means all.
        threats: Radii in place of those of the scale, by preset; the folder of the runs has their
            name then.
        passes: In place of the passes of the reproduction.
        split: Which images are attacked: "test", or "validation", the held-out training images of
            `data.validation`, where choices are made.
        unlabeled: File of pseudo-labeled images, for rows that train on them.
        labeled: How many labels are kept where there is no such file: a model trained on these
            images labels the others. None takes the number of the reproduction.
    """

    reproduction: Reproduction
    scale: Scale
    seeds: tuple[int, ...]
    output: Path
    overrides: tuple[str, ...] = ()
    suite: str | None = None
    limit: int | None = None
    defenses: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    threats: str | None = None
    passes: float | None = None
    split: str = "test"
    unlabeled: Path | None = None
    labeled: int | None = None
    _sources: dict[Path, Run] = field(default_factory=dict, repr=False, compare=False)
    _loaded: dict[DataConfig, Data] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Where the runs of this scale, and of these radii, lie."""
        return self.output / "-".join(filter(None, [self.scale.name, self.threats]))

    @property
    def rows(self) -> tuple[RowOf, ...]:
        """The rows that are made."""
        rows = self.reproduction.rows
        if not (self.defenses or self.names):
            return rows
        return tuple(r for r in rows if r.defense in self.defenses or r.name in self.names)

    def runs(
        self, row: RowOf, changes: Sequence[str] = (), *, folder: str | None = None
    ) -> list[Run]:
        """Return the runs of a row, one a seed, trained or not.

        The run that one starts from, of another row, has the same further changes.

        Args:
            row: One of `rows`.
            changes: Further changes of its recipe.
            folder: Name of the folder of its runs; None makes one of the changes.

        Raises:
            ConfigError: If a change breaks a rule.
            DataError: If the data are missing; the message says how to get them.
        """
        sources = self._sources_of(row, changes, folder)
        changes = (*row.changes, *(row.on_digits if self._small else ()), *changes)
        recipe = self.scale.build(
            [
                f"defenses=[{row.defense!r}]",
                f"seeds={list(self.seeds)!r}",
                *self._evaluation(),
                *self._radii(),
                *self._of_scale(),
                *self.overrides,
                *changes,
            ]
        )
        check_corruptions(recipe)
        data = self._data(recipe.data)
        recipe = pinned(recipe, data)
        self._loaded[recipe.data] = data
        place = folder or _folder_name(changes)
        if not sources:
            return plan(recipe, self.folder / place)
        place = "_".join(filter(None, [place, f"from-{_folder_name([str(row.init_from)])}"]))
        runs = plan(recipe, self.folder / place)
        return [self._started(run, source) for run, source in zip(runs, sources, strict=True)]

    def data(self, run: Run) -> Data:
        """Return the data of a run; each data set is loaded once."""
        return self._data(run.recipe.data)

    def _data(self, config: DataConfig) -> Data:
        if config not in self._loaded:
            self._loaded[config] = with_unlabeled(load_data(config), config)
        return self._loaded[config]

    def train(self, runs: Sequence[Run], progress: Progress) -> None:
        """Train what has not been trained, and before it what it starts from.

        Folders are opened before anything is trained, but those of runs whose start is not there
        yet: its digest belongs to what they are. See `experiment.train_all`.
        """
        runs = self._in_order(runs)
        late = {run.folder for run in runs if (s := self._source(run)) and not s.trained}
        for run in runs:
            if run.folder not in late:
                open_run(run)
        for run in runs:
            if run.folder in late:
                open_run(run)
            if not run.trained:
                train_all(
                    [run],
                    self.data(run),
                    display=progress.display,
                    stop=progress.stop,
                    tell=progress.tell,
                )

    def evaluate(self, runs: Sequence[Run], progress: Progress) -> None:
        """Attack what has not been attacked."""
        for run in runs:
            with shown(run.name, progress.tell) as (display, line_to):
                evaluate_run(
                    run,
                    self.data(run),
                    split=self.split,
                    report=_prefixed(run.name, line_to),
                    display=display,
                )

    def results(self, row: RowOf, runs: Sequence[Run]) -> list[RunResult]:
        """Return what is known of evaluated runs, under the name of their row."""
        return [replace(result_of(run, split=self.split), name=row.name) for run in runs]

    def made(self, row: RowOf, runs: Sequence[Run]) -> list[RunResult]:
        """Return the results of those runs that have been trained and attacked before.

        Raises:
            RunError: If a folder holds another run, or is damaged.
        """
        done = [run for run in runs if run.trained and evaluated(run, split=self.split)]
        for run in done:
            open_run(run)
        return self.results(row, done)

    def _sources_of(self, row: RowOf, changes: Sequence[str], folder: str | None) -> list[Run]:
        """Return the runs that those of a row start from, if it starts from any."""
        if row.init_from is None:
            return []
        rows = {row.name: row for row in self.reproduction.rows}
        return self.runs(rows[row.init_from], changes, folder=folder)

    def _started(self, run: Run, source: Run) -> Run:
        """Return a run that starts from the model of another."""
        start = {"init_from": str(source.folder)}
        training = run.recipe.training.model_copy(update=start)
        self._sources[run.folder] = source
        return replace(run, recipe=run.recipe.model_copy(update={"training": training}))

    def _source(self, run: Run) -> Run | None:
        return self._sources.get(run.folder)

    def _in_order(self, runs: Sequence[Run]) -> list[Run]:
        """Return the runs and all that they start from, each once and after its source."""
        found: dict[Path, Run] = {}
        for run in runs:
            chain: list[Run] = []
            step: Run | None = run
            while step is not None:
                chain.append(step)
                step = self._source(step)
            for each in reversed(chain):
                found.setdefault(each.folder, each)
        return list(found.values())

    @property
    def _small(self) -> bool:
        return self.scale.data == "digits"

    def _radii(self) -> list[str]:
        if self.threats is None:
            return []
        return [f"threats.preset={self.threats!r}", *self.reproduction.threats[self.threats]]

    def _of_scale(self) -> tuple[str, ...]:
        scales = self.reproduction.scales
        return scales.get(self.scale.name, scales.get(self.scale.data, ()))

    def _evaluation(self) -> list[str]:
        suite = self.suite or self.reproduction.suite
        settings = [f"evaluation.suite={suite!r}"] if suite else []
        if self.limit:
            settings.append(f"evaluation.limit={self.limit}")
        if self._small and self.reproduction.severities and not self.suite:
            settings.append(f"evaluation.severities={list(self.reproduction.severities)!r}")
        return settings


def _folder_name(changes: Sequence[str]) -> str:
    """Return the folder that tells changed runs from others, such as "defense.beta-8.0"."""
    plain = ["".join(c if c.isalnum() or c in "._" else "-" for c in text) for text in changes]
    return "_".join(plain)


def _prefixed(name: str, tell: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: tell(f"{name}: {line}")
