"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multirobust import catalog
from multirobust.errors import InputError, Interrupted, MultirobustError, lookup_error

if TYPE_CHECKING:
    from multirobust.config import Recipe
    from multirobust.data import Data
    from multirobust.experiment import Run

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train image classifiers that withstand several kinds of attack, and measure how well any "
    "does.\n\nExample: multirobust demo\n\nExit codes: 0; 1 for a failed or interrupted run; 2 for "
    "bad usage.",
)

RecipeArgument = Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")]
RunsArgument = Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override a field; may stand several times."),
]
DefenseOption = Annotated[
    list[str] | None, typer.Option("--defense", help="In place of the recipe's; several times.")
]
SeedOption = Annotated[
    list[int] | None, typer.Option("--seed", help="In place of the recipe's; several times.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="Folder of the runs; default runs/RECIPE.")
]
SuiteOption = Annotated[str | None, typer.Option("--suite", help="In place of the recipe's.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use only the first test images.")
]
FormatOption = Annotated[
    Literal["text", "markdown", "latex"], typer.Option("--format", help="How to print the table.")
]

_TABLES = {
    "defenses": catalog.DEFENSES,
    "attacks": catalog.ATTACKS,
    "datasets": catalog.DATASETS,
    "models": catalog.MODELS,
    "suites": catalog.SUITES,
    "threats": catalog.THREATS,
    "presets": catalog.PRESETS,
}


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help=f"One of: {', '.join([*_TABLES, 'recipes'])}.")],
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
        raise lookup_error("list", what, [*_TABLES, "recipes"])
    width = max(map(len, table))
    for name, text in table.items():
        typer.echo(f"{name:<{width}}  {text}")


@app.command()
def show(recipe: RecipeArgument, overrides: SetOption = None) -> None:
    """Print a recipe with every field filled, as TOML.

    Example: multirobust show cifar10 --set training.epochs=10
    """
    from multirobust.config import to_toml

    typer.echo(to_toml(_recipe(recipe, overrides)), nl=False)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    defense: DefenseOption = None,
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Train the defenses of a recipe; what is finished stays, what was interrupted goes on.

    Example: multirobust train digits --defense sat --defense mng_ac --output runs/mine
    """
    chosen = _recipe(recipe, overrides, defense, seed)
    runs, data = _plan(chosen, output)
    _train_all(runs, data)


@app.command()
def evaluate(
    runs: RunsArgument,
    suite: SuiteOption = None,
    limit: LimitOption = None,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Which images.")] = "test",
    overrides: SetOption = None,
) -> None:
    """Attack trained models and keep what happened to every image.

    --set changes the runs' own recipe, such as threats.preset or evaluation.attack.restarts.

    Example: multirobust evaluate runs/digits/sat-s0 --limit 100
    """
    from multirobust.experiment import find_runs

    _evaluate_all(find_runs(runs), suite, limit, split, overrides)


@app.command()
def compare(runs: RunsArgument, suite: SuiteOption = None, form: FormatOption = "text") -> None:
    """Print the paper's table of evaluated runs: clean, per norm, union, average, time.

    Example: multirobust compare runs/digits --format latex
    """
    from multirobust.experiment import find_runs, result_of
    from multirobust.report import comparison, latex, markdown, text

    renderers: dict[str, Callable[..., str]] = {"text": text, "markdown": markdown, "latex": latex}
    results = [result_of(run, suite) for run in find_runs(runs)]
    typer.echo(renderers[form](comparison(results)).rstrip("\n"))


@app.command()
def report(
    runs: RunsArgument,
    output: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    suite: SuiteOption = None,
    images: Annotated[int, typer.Option(min=0, help="Test images to show attacked.")] = 3,
) -> None:
    """Write one HTML file with the table, the figures and attacked images of evaluated runs.

    Example: multirobust report runs/digits --output report.html
    """
    from multirobust.experiment import find_runs

    _report(find_runs(runs), output, suite, images)


@app.command("run")
def run_recipe(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    defense: DefenseOption = None,
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Train, evaluate, compare and report: the whole of a recipe by one command.

    Interrupted, the same command goes on where it stopped.

    Example: multirobust run cifar10_small --set data.folder=PATH
    """
    _run(_recipe(recipe, overrides, defense, seed), output)


@app.command()
def demo(output: OutputOption = None) -> None:
    """Train five defenses on embedded digits, attack each in three norms, show who withstands what.

    Takes a few minutes on a laptop. Example: multirobust demo
    """
    _run(_recipe("digits"), output or Path("runs/demo"))


def main() -> None:
    """Run the command line; an error of the package is one message, never a traceback."""
    try:
        app()
    except Interrupted as error:
        _fail(str(error), 1)
    except InputError as error:
        _fail(f"Error: {error}", 2)
    except MultirobustError as error:
        _fail(f"Error: {error}", 1)


def _fail(message: str, code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(code)


def _recipe(
    source: str,
    overrides: list[str] | None = None,
    defense: list[str] | None = None,
    seed: list[int] | None = None,
) -> Recipe:
    from multirobust.config import load_recipe

    chosen = list(overrides or [])
    if defense:
        chosen.append(f"defenses={list(defense)!r}")
    if seed:
        chosen.append(f"seeds={list(seed)!r}")
    return load_recipe(source, chosen)


def _plan(recipe: Recipe, output: Path | None) -> tuple[list[Run], Data]:
    from multirobust.experiment import load_data, open_run, plan

    runs = plan(recipe, output or Path("runs") / recipe.name)
    for run in runs:
        open_run(run)
    return runs, load_data(recipe.data)


def _train_all(runs: list[Run], data: Data) -> None:
    from multirobust.experiment import train_run
    from multirobust.training import display_for, stop_on_interrupt

    with stop_on_interrupt() as stop:
        for run in runs:
            if run.trained:
                typer.echo(f"{run.name}: already trained in {run.folder}", err=True)
                continue
            train_run(run, data, display=display_for(), stop=stop)
            if stop():
                raise Interrupted("Interrupted between two runs; the same command goes on.")


def _evaluate_all(
    runs: list[Run],
    suite: str | None = None,
    limit: int | None = None,
    split: str = "test",
    overrides: list[str] | None = None,
) -> None:
    from multirobust.config import load_recipe
    from multirobust.experiment import evaluate_run, load_data

    extra = list(overrides or [])
    extra += [f"evaluation.suite={suite}"] if suite else []
    extra += [f"evaluation.limit={limit}"] if limit else []
    data: dict[Any, Data] = {}
    for run in runs:
        recipe = load_recipe(run.folder / "recipe.toml", extra)
        if recipe.data not in data:
            data[recipe.data] = load_data(recipe.data)

        def tell(line: str, name: str = run.name) -> None:
            typer.echo(f"{name}: {line}", err=True)

        outcomes = evaluate_run(run, data[recipe.data], recipe=recipe, split=split, report=tell)
        summary = " | ".join(str(outcomes).splitlines()[1:])
        typer.echo(f"{run.name}: {' '.join(summary.split())}", err=True)


def _report(runs: list[Run], output: Path, suite: str | None = None, images: int = 3) -> None:
    from multirobust.experiment import load_data, report_runs

    data = load_data(runs[0].recipe.data) if images else None
    report_runs(runs, output, data=data, images=images, suite=suite)
    typer.echo(f"Report: {output}")


def _run(recipe: Recipe, output: Path | None) -> None:
    from multirobust.experiment import result_of
    from multirobust.report import comparison, text

    runs, data = _plan(recipe, output)
    _train_all(runs, data)
    _evaluate_all(runs)
    typer.echo(text(comparison([result_of(run) for run in runs])))
    _report(runs, runs[0].folder.parent / "report.html")
