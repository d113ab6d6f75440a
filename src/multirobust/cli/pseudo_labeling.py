"""The command that labels images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multirobust.cli.common import tell
from multirobust.errors import InputError

if TYPE_CHECKING:
    from multirobust.experiment.labelers import ExternalModel
    from multirobust.experiment.runs import Run

__all__ = ["pseudo_label"]

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Folder of a trained run, as a rule of 'standard'; or any other classifier, named as "
        "for `multirobust evaluate --model`: an exported folder, hf:owner/name, "
        "package.module:function, or a name of `multirobust list models` with --weights.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="Of a classifier: a .safetensors, .pt or .pth file."),
]
ArgumentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg", metavar="name=value", help="For the function that makes a classifier."
    ),
]
DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="The run's data set, of which it takes the training images that it was not trained "
        "on; another data set, or svhn_extra; an .npz file or a folder of images. What a "
        "classifier that is no run was trained on is not known: of a data set it takes all.",
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
    weights: WeightsOption = None,
    model_arg: ArgumentOption = None,
) -> None:
    """Label images with a trained model, for training on them too (data.unlabeled).

    True labels are never used and never written.

    Example: multirobust pseudo-label runs/few/standard-s0 digits --output digits-rest.npz

    Example: multirobust pseudo-label nets.py:net cifar10 --weights net.pt --output labeled.npz
    """
    from multirobust.experiment.pseudo_labeling import pseudo_label
    from multirobust.experiment.runs import make_folder

    name, model = _model(run, weights, model_arg or [])
    make_folder(output.parent)
    made = pseudo_label(
        model,
        data,
        output,
        limit=limit,
        confidence=confidence,
        data_folder=data_folder,
        report=tell,
    )
    dropped = made.offered - made.count
    left_out = f", {dropped:,} less certain ones left out" if dropped else ""
    typer.echo(f"{made.count:,} images of {data} labeled by {name}{left_out}.")
    shares = (f"{name} {100 * share:.1f} %" for name, share in made.shares.items())
    typer.echo(f"Classes: {', '.join(shares)}.")
    if made.accuracy is not None:
        typer.echo(
            f"For information: {100 * made.accuracy:.1f} % of the pseudo-labels are the true "
            "labels, which are not used and not in the file."
        )
    typer.echo(f"Pseudo-labels: {made.path}. To train on them: --set data.unlabeled={made.path}")


def _model(
    spec: str, weights: Path | None, model_arg: list[str]
) -> tuple[str, Run | ExternalModel]:
    """Return the run that is named, or else the classifier, and what to call it."""
    from multirobust.experiment import find_runs
    from multirobust.experiment.labelers import ExternalModel
    from multirobust.models import MODELS
    from multirobust.models.external import model_arguments
    from multirobust.models.pretrained import is_export

    folder = Path(spec).expanduser()
    if spec in MODELS or not folder.is_dir() or is_export(folder):
        options = model_arguments(model_arg)
        return spec, ExternalModel(spec=spec, weights=weights, options=options)
    if weights is not None or model_arg:
        raise InputError(
            f"RUN: {spec} is a folder of runs, which bring their own weights and settings; leave "
            "out --weights and --model-arg."
        )
    runs = find_runs([folder])
    if len(runs) != 1:
        names = ", ".join(found.name for found in runs)
        raise InputError(f"RUN: one model labels the images, {spec} holds {names}; name one.")
    return runs[0].name, runs[0]
