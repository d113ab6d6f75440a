"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from multirobust import catalog
from multirobust.errors import InputError, Interrupted, MultirobustError, lookup_error

if TYPE_CHECKING:
    from multirobust.config import Recipe
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

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a TOML file.")
]
RunsArgument = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of them.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override a field; may stand several times."),
]
DefenseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--defense", metavar="NAME", help="In place of the recipe's; may stand several times."
    ),
]
SeedOption = Annotated[
    list[int] | None,
    typer.Option("--seed", metavar="N", help="In place of the recipe's; may stand several times."),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="Folder of the runs; default runs/RECIPE.")
]
SuiteOption = Annotated[str | None, typer.Option("--suite", help="In place of the recipe's.")]
EvaluationOption = Annotated[
    str | None,
    typer.Option("--suite", help="Which evaluation: a folder name under RUN/evaluation."),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use only the first test images.")
]
FormatOption = Annotated[
    Literal["text", "markdown", "latex"], typer.Option("--format", help="How to print the table.")
]

_INTERRUPTED = 130
"""The exit code that typer gives to Ctrl-C."""

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
    _train(chosen, output)


@app.command()
def evaluate(
    runs: RunsArgument,
    suite: SuiteOption = None,
    limit: LimitOption = None,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Which images.")] = "test",
    overrides: SetOption = None,
) -> None:
    """Attack trained models and keep what happened to every image.

    --set changes how the models are attacked, such as threats.preset or
    evaluation.attack.restarts. An evaluation other than the recipe's own is kept beside it.

    Example: multirobust evaluate runs/digits/sat-s0 --limit 100
    """
    from multirobust.experiment import evaluate_all, find_runs

    extra = list(overrides or [])
    extra += [f"evaluation.suite={suite}"] if suite else []
    extra += [f"evaluation.limit={limit}"] if limit else []
    evaluate_all(find_runs(runs), overrides=extra, split=split, tell=_tell)


@app.command()
def compare(
    runs: RunsArgument,
    suite: EvaluationOption = None,
    form: FormatOption = "text",
    record: Annotated[
        Path | None, typer.Option(help="Also write every image's outcome to this JSON file.")
    ] = None,
) -> None:
    """Print the paper's table of evaluated runs: clean, per norm, union, average, time.

    Example: multirobust compare runs/digits --format latex
    """
    from multirobust.experiment import find_runs, result_of
    from multirobust.report import comparison, latex, markdown, text, write_record

    renderers: dict[str, Callable[..., str]] = {"text": text, "markdown": markdown, "latex": latex}
    results = [result_of(run, suite) for run in find_runs(runs)]
    typer.echo(renderers[form](comparison(results)).rstrip("\n"))
    if record:
        write_record(results, record, command=shlex.join(["multirobust", *sys.argv[1:]]))


@app.command()
def report(
    runs: RunsArgument,
    output: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    suite: EvaluationOption = None,
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
        app(prog_name="multirobust")
    except SystemExit as ending:
        if ending.code != _INTERRUPTED:
            raise
        _fail("Interrupted; what is finished is kept. Run the same command again to go on.", 1)
    except Interrupted as error:
        _fail(str(error), 1)
    except InputError as error:
        _fail(f"Error: {error}", 2)
    except MultirobustError as error:
        _fail(f"Error: {error}", 1)


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _fail(message: str, code: int) -> None:
    _tell(message)
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


def _train(recipe: Recipe, output: Path | None) -> list[Run]:
    from multirobust.experiment import prepare, train_all
    from multirobust.training import display_for, stop_on_interrupt

    runs, data = prepare(recipe, output or Path("runs") / recipe.name)
    with stop_on_interrupt() as stop:
        train_all(runs, data, display=display_for, stop=stop, tell=_tell)
    return runs


def _report(runs: list[Run], output: Path, suite: str | None = None, images: int = 3) -> None:
    from multirobust.experiment import load_data, report_runs

    data = load_data(runs[0].recipe.data) if images else None
    report_runs(runs, output, data=data, images=images, suite=suite)
    typer.echo(f"Report: {output}")


def _run(recipe: Recipe, output: Path | None) -> None:
    from multirobust.experiment import evaluate_all, result_of
    from multirobust.report import comparison, text

    runs = _train(recipe, output)
    evaluate_all(runs, tell=_tell)
    typer.echo(text(comparison([result_of(run) for run in runs])).rstrip("\n"))
    _report(runs, runs[0].folder.parent / "report.html")
