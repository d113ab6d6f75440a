"""Several runs in a row: prepare, train, evaluate. What the command line does, for Python too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from multirobust.attacks import threats_from
from multirobust.config import DataConfig, Recipe, load_recipe
from multirobust.data import Data
from multirobust.errors import Interrupted
from multirobust.evaluation import shown
from multirobust.experiment.building import check_corruptions, load_data, pinned
from multirobust.experiment.pipeline import evaluate_run, train_run
from multirobust.experiment.runs import RECIPE, Run, open_run, plan
from multirobust.experiment.unlabeled import check_unlabeled, with_unlabeled
from multirobust.ranks import agreed, rank_0_first
from multirobust.threats import check_scale
from multirobust.training import ProgressDisplay

__all__ = ["evaluate_all", "prepare", "train_all"]


def prepare(recipe: Recipe, output: Path) -> tuple[list[Run], Data]:
    """Load the data of a recipe and open the folders of all its runs, before anything is trained.

    Raises:
        DataError: If the data to train on or to evaluate on are missing; no folder is made.
        InputError: If a radius makes no sense, or a defense needs unlabeled images and the recipe
            names none; no folder is made.
        RunError: If a folder holds something else or cannot be written.
    """
    threats = threats_from(recipe.threats)
    with rank_0_first():
        check_corruptions(recipe)
        data = with_unlabeled(load_data(recipe.data), recipe.data)
        for norm, threat in threats.items():
            shape = data.train.images.shape[1:]
            check_scale(f"threats.{norm}", threat, shape, source=data.name)
        for defense in recipe.defenses:
            check_unlabeled(defense, data)
        runs = plan(pinned(recipe, data), output)
        for run in runs:
            open_run(run)
    return runs, data


def train_all(
    runs: Sequence[Run],
    data: Data,
    *,
    display: Callable[[], ProgressDisplay | None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Train runs one after the other; what has ended stays as it is.

    Args:
        runs: With opened folders.
        data: What all of them train on.
        display: Makes the progress display of a run.
        stop: Asked after every step.
        tell: Receives one line for each run that needs no training.

    Raises:
        Interrupted: If `stop` said so; what was done is saved.
    """
    for run in runs:
        if agreed(run.trained):
            tell(f"{run.name}: already trained in {run.folder}")
            continue
        train_run(run, data, display=display(), stop=stop)
        if agreed(stop()):
            raise Interrupted("Interrupted between two runs; run the same command again to go on.")


def evaluate_all(
    runs: Sequence[Run],
    *,
    overrides: Sequence[str] = (),
    split: str = "test",
    tell: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> None:
    """Attack the models of runs, each with its own recipe.

    Args:
        runs: Runs that have been trained.
        overrides: Changes to the evaluation settings of each, as in `load_recipe`.
        split: "test" or "validation".
        tell: Receives a line for each attack, and one with the accuracies of each run.
        options: Others of `evaluate_run`.
    """
    loaded: dict[DataConfig, Data] = {}
    for run in runs:
        recipe = load_recipe(run.folder / RECIPE, overrides) if overrides else run.recipe
        if recipe.data not in loaded:
            loaded[recipe.data] = load_data(recipe.data)
        with shown(run.name, tell) as (display, print_line):

            def report(
                line: str, name: str = run.name, to: Callable[[str], None] = print_line
            ) -> None:
                to(f"{name}: {line}")

            outcomes = evaluate_run(
                run,
                loaded[recipe.data],
                recipe=recipe,
                split=split,
                report=report,
                display=display,
                **options,
            )
            report(" | ".join(" ".join(line.split()) for line in str(outcomes).splitlines()[1:]))
