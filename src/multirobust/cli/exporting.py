"""The commands that give models away: export, push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multirobust.cli.common import tell
from multirobust.errors import InputError

if TYPE_CHECKING:
    from multirobust.data import Data
    from multirobust.experiment import Run

__all__ = ["export", "push"]

OnnxOption = Annotated[
    bool, typer.Option("--onnx", help="Also write model.onnx, checked with onnxruntime.")
]
LicenseOption = Annotated[
    str | None, typer.Option("--license", help="What the card states, such as mit; default none.")
]
DataFolderOption = Annotated[
    str | None, typer.Option("--data-folder", help="Where the files of the data set lie now.")
]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of one trained run.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="The folder; default RUN/export.")
    ] = None,
    onnx: OnnxOption = False,
    license: LicenseOption = None,
    data_folder: DataFolderOption = None,
) -> None:
    """Write a trained model for others: weights, config, a model card with its measured numbers.

    The card shows what is stored in RUN/evaluation and no other number. The folder is read by
    multirobust.from_pretrained and by `multirobust evaluate --model`.

    Example: multirobust export runs/demo/sat-s0 --onnx --output exports/sat
    """
    from multirobust.experiment.exporting import export_run

    chosen = _one_run(run)
    made = export_run(
        chosen, _data_of(chosen, data_folder), output, onnx=onnx, license=license, report=tell
    )
    told = {0: "no stored evaluation", 1: "1 stored evaluation"}
    count = told.get(made.evaluations, f"{made.evaluations} stored evaluations")
    typer.echo(f"Export: {made.folder} ({', '.join(made.files)}); the card tells of {count}")
    if made.onnx:
        typer.echo(
            f"ONNX: logits differ by at most {made.onnx.difference:.2g} on {made.onnx.images} "
            f"random images (accepted: {made.onnx.tolerance:.2g}), opset {made.onnx.opset}"
        )


def push(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_EXPORT", help="A run folder, or an exported one.")
    ],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private if it is new.")
    ] = False,
    onnx: OnnxOption = False,
    license: LicenseOption = None,
    data_folder: DataFolderOption = None,
) -> None:
    """Upload a model to Hugging Face; a run is exported first. Needs `hf auth login`.

    Example: multirobust push runs/demo/sat-s0 me/digits-sat --license mit
    """
    from multirobust.experiment import publishing
    from multirobust.models.pretrained import is_export

    if is_export(source):
        given = {"--onnx": onnx, "--license": license, "--data-folder": data_folder}
        for name, value in given.items():
            if value:
                raise InputError(f"{name}: {source} is exported already; give it to export.")
        address = publishing.push(source, repository, private=private)
    else:
        run = _one_run(source)
        data = _data_of(run, data_folder)
        address = publishing.push_run(
            run, data, repository, onnx=onnx, license=license, private=private, report=tell
        )
    typer.echo(f"Uploaded: {address}")


def _one_run(path: Path) -> Run:
    from multirobust.experiment import find_runs

    found = find_runs([path])
    if len(found) > 1:
        names = ", ".join(run.folder.name for run in found)
        raise InputError(f"RUN: {path} holds several runs ({names}); name one of them.")
    return found[0]


def _data_of(run: Run, folder: str | None) -> Data:
    from multirobust.experiment import load_data

    config = run.recipe.data
    return load_data(config if folder is None else config.model_copy(update={"folder": folder}))
