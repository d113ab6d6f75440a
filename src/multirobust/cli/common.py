"""What all commands share: the application, its options, and how it speaks."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from multirobust.errors import InputError

if TYPE_CHECKING:
    from multirobust.config import Recipe

__all__ = [
    "DefenseOption",
    "DevicesOption",
    "EvaluationOption",
    "FineTuneOption",
    "FormatOption",
    "InitOption",
    "LimitOption",
    "OutputOption",
    "RecipeArgument",
    "ResultsArgument",
    "RunsArgument",
    "SeedOption",
    "SetOption",
    "SuiteOption",
    "app",
    "recipe_of",
    "tell",
]

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
InitOption = Annotated[
    Path | None,
    typer.Option(
        "--init-from",
        metavar="PATH",
        help="Fine-tune: start from the weights of this run folder or file, with the published "
        "settings (3 epochs at 0.05, ...).",
    ),
]
FineTuneOption = Annotated[
    bool | None,
    typer.Option(
        "--finetune/--no-finetune",
        help="Whether the published settings of fine-tuning stand in place of the recipe's, where "
        "--set does not say otherwise; default: with --init-from.",
    ),
]
DevicesOption = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", min=1, help="Train on so many devices of this machine."),
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
ResultsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="Run folders, folders of outcomes, folders of these, or files of --record.",
    ),
]


def tell(line: str) -> None:
    """Print to standard error; control characters, which steer a terminal, become spaces."""
    typer.echo("".join(" " if _steers(c) else c for c in line), err=True)


def _steers(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\n\t"


def recipe_of(
    source: str,
    overrides: list[str] | None = None,
    defense: list[str] | None = None,
    seed: list[int] | None = None,
    init_from: Path | None = None,
    devices: int | None = None,
    finetune: bool | None = None,
) -> Recipe:
    """Return a recipe with the overrides of the command line.

    A model to start from brings the published settings of fine-tuning along, unless `finetune` is
    False; what the overrides say counts before them.
    """
    from multirobust.config import load_recipe
    from multirobust.config.finetuning import fine_tuning_overrides

    tuned = init_from is not None if finetune is None else finetune
    chosen = [*(fine_tuning_overrides() if tuned else []), *(overrides or [])]
    if defense:
        chosen.append(f"defenses={list(defense)!r}")
    if seed:
        chosen.append(f"seeds={list(seed)!r}")
    if init_from is not None:
        chosen.append(f"training.init_from={json.dumps(str(init_from), ensure_ascii=False)}")
    if devices is not None:
        chosen.append(f"training.devices={devices}")
    recipe = load_recipe(source, chosen)
    if finetune and recipe.training.init_from is None:
        raise InputError(
            "--finetune: needs a model to start from, got none; add --init-from PATH, a run folder "
            "or a file of weights."
        )
    return recipe
