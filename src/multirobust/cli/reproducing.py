"""The command that makes the paper's tables and figures anew, and a study of ours."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from multirobust.cli.common import DefenseOption, LimitOption, SetOption, SuiteOption, tell

__all__ = ["reproduce"]


def reproduce(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="See `multirobust list reproductions`."),
    ],
    data: Annotated[
        str, typer.Option(help="digits (embedded), cifar10, svhn or tinyimagenet.")
    ] = "digits",
    model: Annotated[
        str | None, typer.Option(help="The network; default the paper's, small on digits.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many: 0, 1, ...")] = 3,
    defense: DefenseOption = None,
    row: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="NAME", help="Only these rows; may stand several times."),
    ] = None,
    threats: Annotated[
        str | None, typer.Option(help="Other radii, for choose-the-attack: e_at, e_at_hard.")
    ] = None,
    passes: Annotated[
        float | None, typer.Option(help="Passes an image, for choose-the-attack.")
    ] = None,
    split: Annotated[
        Literal["test", "validation"],
        typer.Option(help="Of choose-the-attack: which images are attacked; choose on validation."),
    ] = "test",
    suite: SuiteOption = None,
    limit: LimitOption = None,
    unlabeled: Annotated[
        Path | None, typer.Option(help="File of pseudo-labeled images, for table-2.")
    ] = None,
    labeled: Annotated[
        int | None, typer.Option(min=2, help="Without such a file: keep only so many labels.")
    ] = None,
    overrides: SetOption = None,
    output: Annotated[
        Path, typer.Option(help="Folder of all runs; what is there is used again.")
    ] = Path("runs/reproduce"),
) -> None:
    """Make a table or figure: train, attack, and show ours beside the paper's.

    Models are shared among tables; interrupted, the same command goes on where it stopped.

    Example: multirobust reproduce table-1 --data digits --seeds 3
    """
    from multirobust.recipes import Progress, Study, load_reproduction, scale_of
    from multirobust.recipes import reproduce as make
    from multirobust.training import display_for, stop_on_interrupt

    study = Study(
        reproduction=load_reproduction(target),
        scale=scale_of(data, model),
        seeds=tuple(range(seeds)),
        output=output,
        overrides=tuple(overrides or ()),
        suite=suite,
        limit=limit,
        defenses=tuple(defense or ()),
        names=tuple(row or ()),
        threats=threats,
        passes=passes,
        split=split,
        unlabeled=unlabeled,
        labeled=labeled,
    )
    with stop_on_interrupt() as stop:
        product = make(study, Progress(display_for, stop, tell))
    typer.echo(str(product))
    name = target if split == "test" else f"{target}-{split}"
    for path in product.write(study.folder, name, command=_command()):
        tell(f"wrote {path}")


def _command() -> str:
    """Return the command, without where the data lie on this machine."""
    words = [
        "data.folder=PATH" if word.startswith("data.folder=") else word for word in sys.argv[1:]
    ]
    return shlex.join(["multirobust", *words])
