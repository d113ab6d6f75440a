"""The commands that train, and those that list what can be trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multirobust import catalog
from multirobust.cli.common import (
    DefenseOption,
    DevicesOption,
    FineTuneOption,
    InitOption,
    OutputOption,
    RecipeArgument,
    SeedOption,
    SetOption,
    recipe_of,
    tell,
)
from multirobust.cli.launching import launch
from multirobust.cli.reading import write_report_of
from multirobust.errors import lookup_error
from multirobust.processes import launched

if TYPE_CHECKING:
    from multirobust.config import Recipe
    from multirobust.experiment import Run

__all__ = ["demo", "list_names", "run_recipe", "show", "train"]

_TABLES = {
    "defenses": catalog.DEFENSES,
    "attacks": catalog.ATTACKS,
    "datasets": catalog.DATASETS | catalog.EVALUATION_SETS,
    "models": catalog.MODELS,
    "suites": catalog.SUITES,
    "threats": catalog.THREATS,
    "presets": catalog.PRESETS,
    "reproductions": catalog.REPRODUCTIONS,
}


def list_names(
    what: Annotated[
        str, typer.Argument(metavar="TABLE", help=f"One of: {', '.join([*_TABLES, 'recipes'])}.")
    ],
) -> None:
    """List the names that can be written, each with what it is.

    Example: multirobust list defenses
    """
    if what == "recipes":
        from multirobust.config import shipped_recipes

        table = shipped_recipes()
    elif what in _TABLES:
        table = _TABLES[what]
    else:
        raise lookup_error("table", what, [*_TABLES, "recipes"])
    width = max(map(len, table))
    for name, text in table.items():
        typer.echo(f"{name:<{width}}  {text}")
    if what == "recipes":
        tell("Published tables that one command makes again: multirobust list reproductions.")


def show(recipe: RecipeArgument, overrides: SetOption = None) -> None:
    """Print a recipe with every field filled, as TOML.

    Example: multirobust show cifar10 --set training.epochs=10
    """
    from multirobust.config import to_toml

    typer.echo(to_toml(recipe_of(recipe, overrides)), nl=False)


def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    defense: DefenseOption = None,
    seed: SeedOption = None,
    init_from: InitOption = None,
    finetune: FineTuneOption = None,
    devices: DevicesOption = None,
    output: OutputOption = None,
) -> None:
    """Train the defenses of a recipe; what is finished stays, what was interrupted goes on.

    Example: multirobust train digits --defense sat --defense mng_ac --output runs/mine
    """
    chosen = recipe_of(recipe, overrides, defense, seed, init_from, devices, finetune)
    _train(chosen, output, overrides)


def run_recipe(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    defense: DefenseOption = None,
    seed: SeedOption = None,
    init_from: InitOption = None,
    finetune: FineTuneOption = None,
    devices: DevicesOption = None,
    output: OutputOption = None,
) -> None:
    """Train, evaluate, compare and report: the whole of a recipe by one command.

    Interrupted, the same command goes on where it stopped.

    Example: multirobust run cifar10_small --set data.folder=PATH
    """
    chosen = recipe_of(recipe, overrides, defense, seed, init_from, devices, finetune)
    _run(chosen, output, overrides)


def demo(output: OutputOption = None) -> None:
    """Train five defenses on embedded digits, attack each in three norms, show who withstands what.

    Takes a few minutes on a laptop. Example: multirobust demo
    """
    _run(recipe_of("digits"), output or Path("runs/demo"))


def _train(recipe: Recipe, output: Path | None, said: list[str] | None = None) -> list[Run]:
    """Train, and return the runs that this process goes on with: none, if another one does."""
    started = launched()
    if started is None and recipe.training.devices > 1:
        launch(recipe.training.devices, sys.argv[1:])
        return []
    if started is None or started.rank == 0:
        _tell_settings(recipe, said or [])
    from multirobust.experiment import prepare, train_all
    from multirobust.training import display_for, stop_on_interrupt, together

    with together(recipe.training), stop_on_interrupt() as stop:
        runs, data = prepare(recipe, output or Path("runs") / recipe.name)
        train_all(runs, data, display=display_for, stop=stop, tell=tell)
    return runs if started is None or started.rank == 0 else []


def _tell_settings(recipe: Recipe, said: list[str]) -> None:
    """Say of a run that starts from a model which settings of fine-tuning it has, or has not."""
    from multirobust.config.finetuning import departures, followed

    if recipe.training.init_from is None:
        return
    if found := departures(recipe, said):
        tell(f"Not as published for fine-tuning: {found}. --finetune sets what is in brackets.")
    elif found := followed(recipe, said):
        tell(f"Fine-tuning as published: {found}. --no-finetune keeps the recipe's.")


def _run(recipe: Recipe, output: Path | None, said: list[str] | None = None) -> None:
    from multirobust.experiment import evaluate_all, result_of
    from multirobust.report import comparison, text

    runs = _train(recipe, output, said)
    if not runs:
        return
    evaluate_all(runs, tell=tell)
    typer.echo(text(comparison([result_of(run) for run in runs])).rstrip("\n"))
    write_report_of(runs, runs[0].folder.parent / "report.html")
