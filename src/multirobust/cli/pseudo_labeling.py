"""The command that labels images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multirobust.cli.common import tell
from multirobust.errors import InputError

__all__ = ["pseudo_label"]

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a trained run, as a rule of 'standard'.")
]
DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="The run's data set, of which it takes the training images that it was not trained "
        "on; another data set, or svhn_extra; an .npz file or a folder of images.",
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", help="The .npz file to write.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Label only the first images.")
]
ConfidenceOption = Annotated[
    float | None,
    typer.Option(
        "--confidence",
        min=0,
        max=1,
        help="Keep only images whose label has at least this probability; default: all.",
    ),
]
FolderOption = Annotated[
    str | None, typer.Option("--data-folder", help="Where the files of a data set lie.")
]


def pseudo_label(
    run: RunArgument,
    data: DataArgument,
    output: OutputOption = Path("pseudo_labels.npz"),
    limit: LimitOption = None,
    confidence: ConfidenceOption = None,
    data_folder: FolderOption = None,
) -> None:
    """Label images with a trained model, for training on them too (data.unlabeled).

    True labels are never used and never written.

    Example: multirobust pseudo-label runs/few/standard-s0 digits --output digits-rest.npz
    """
    from multirobust.experiment import find_runs
    from multirobust.experiment.pseudo_labeling import pseudo_label
    from multirobust.experiment.runs import make_folder

    runs = find_runs([run])
    if len(runs) != 1:
        names = ", ".join(found.name for found in runs)
        raise InputError(f"RUN: one model labels the images, {run} holds {names}; name one.")
    make_folder(output.parent)
    made = pseudo_label(
        runs[0],
        data,
        output,
        limit=limit,
        confidence=confidence,
        data_folder=data_folder,
        report=tell,
    )
    dropped = made.offered - made.count
    left_out = f", {dropped:,} less certain ones left out" if dropped else ""
    typer.echo(f"{made.count:,} images of {data} labeled by {runs[0].name}{left_out}.")
    shares = (f"{name} {100 * share:.1f} %" for name, share in made.shares.items())
    typer.echo(f"Classes: {', '.join(shares)}.")
    if made.accuracy is not None:
        typer.echo(
            f"For information: {100 * made.accuracy:.1f} % of the pseudo-labels are the true "
            "labels, which are not used and not in the file."
        )
    typer.echo(f"Pseudo-labels: {made.path}. To train on them: --set data.unlabeled={made.path}")
