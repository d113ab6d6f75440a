"""The commands that read evaluations: compare, breakdown, report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multirobust.cli.common import (
    EvaluationOption,
    FormatOption,
    ResultsArgument,
    RunsArgument,
)
from multirobust.errors import InputError

if TYPE_CHECKING:
    from multirobust.experiment import Run
    from multirobust.report import RunResult, Table

__all__ = ["breakdown", "compare", "report", "write_report_of"]


def compare(
    runs: ResultsArgument,
    suite: EvaluationOption = None,
    form: FormatOption = "text",
    paired: Annotated[
        bool, typer.Option("--paired", help="Also test each against the first, image by image.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Also write every image's outcome to this JSON file.")
    ] = None,
) -> None:
    """Print the paper's table of evaluations: clean, per norm, union, average, time.

    They may come from different machines. --paired adds McNemar's test of the union.

    Example: multirobust compare runs/digits --format latex
    """
    from multirobust.experiment import results_of
    from multirobust.report import comparison, write_record

    results = results_of(runs, suite)
    tests = _paired(results) if paired else []
    _print(comparison(results), form)
    for line in tests:
        typer.echo(line)
    if record:
        write_record(results, record, command=shlex.join(["multirobust", *sys.argv[1:]]))


def breakdown(
    evaluation: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or a folder of outcomes.")
    ],
    suite: EvaluationOption = None,
    form: FormatOption = "text",
) -> None:
    """Print what each attack of an evaluation breaks, adds to the union, and costs.

    Example: multirobust breakdown runs/demo/sat-s0
    """
    from multirobust.experiment import outcomes_at
    from multirobust.report import breakdown as table_of

    _print(table_of(outcomes_at(evaluation, suite)), form)


def report(
    runs: RunsArgument,
    output: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    suite: EvaluationOption = None,
    images: Annotated[int, typer.Option(min=0, help="Test images to show attacked.")] = 3,
    analyses: Annotated[
        bool, typer.Option("--analyses", help="Also loss surfaces and decision boundaries.")
    ] = False,
) -> None:
    """Write one HTML file with the table, the figures and attacked images of evaluated runs.

    Training curves and what `multirobust curve` stored are shown where they are there. --analyses
    computes more: seconds for each small model, longer for large ones.

    Example: multirobust report runs/digits --output report.html
    """
    from multirobust.experiment import find_runs

    write_report_of(find_runs(runs), output, suite, images, analyses)


def write_report_of(
    runs: list[Run],
    output: Path,
    suite: str | None = None,
    images: int = 3,
    analyses: bool = False,
) -> None:
    """Write the report of runs and say where it is."""
    from multirobust.experiment import load_data, report_runs

    data = load_data(runs[0].recipe.data) if images or analyses else None
    report_runs(runs, output, data=data, images=images, suite=suite, analyses=analyses)
    typer.echo(f"Report: {output}")


def _print(table: Table, form: str) -> None:
    from multirobust.report import latex, markdown, text

    renderers: dict[str, Callable[..., str]] = {"text": text, "markdown": markdown, "latex": latex}
    typer.echo(renderers[form](table).rstrip("\n"))


def _paired(results: Sequence[RunResult]) -> list[str]:
    """Return one line for each result beside the first."""
    from multirobust.evaluation import mcnemar

    if len(results) < 2:
        raise InputError("--paired: needs at least two evaluations of the same images, got one.")
    names = [f"{result.name} (seed {result.seed})" for result in results]
    lines = ["", "Union, image by image (McNemar's exact test):"]
    for name, result in zip(names[1:], results[1:], strict=True):
        found = mcnemar(result.outcomes, results[0].outcomes)
        lines.append(f"  {name} against {names[0]}: {found}")
    return lines
