"""A trained run as a folder that others can use: weights, config, model card, ONNX."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from multirobust.attacks import threats_from
from multirobust.config import Recipe, to_toml
from multirobust.data import Data
from multirobust.errors import InputError, RunError
from multirobust.experiment.building import load_model
from multirobust.experiment.model_card import model_card
from multirobust.experiment.runs import MODEL, RECIPE, Run, make_folder, to_json
from multirobust.experiment.stored import stored_evaluations
from multirobust.files import atomic_write_together, replace_folder, restore_folder
from multirobust.models.onnx_export import OnnxFile, export_onnx
from multirobust.models.pretrained import (
    CONFIG,
    FORMAT,
    VERSION,
    is_export,
    load_export,
    read_config,
)

__all__ = ["Export", "export_run"]

CARD, ONNX = "README.md", "model.onnx"
FILES = (CONFIG, MODEL, CARD, RECIPE, ONNX)
"""All that an export may hold, and all that is ever uploaded."""

LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@final
@dataclass(frozen=True)
class Export:
    """What was written.

    Args:
        folder: Where.
        files: The names of the files.
        evaluations: How many stored evaluations the card tells of.
        onnx: The checked ONNX file, if one was asked for.
    """

    folder: Path
    files: tuple[str, ...]
    evaluations: int
    onnx: OnnxFile | None = None


def export_run(
    run: Run,
    data: Data,
    folder: Path | None = None,
    *,
    onnx: bool = False,
    license: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Export:
    """Write a trained run as `config.json`, `model.safetensors`, `README.md` and `recipe.toml`.

    The folder is written whole or not at all: a new one takes its name when all its files are
    there and the model has been loaded back from them. An earlier export of the same run is
    replaced as a whole, and stays as it was if anything fails; see `replace_folder`.

    Args:
        run: A run that has been trained. It stays as it is.
        data: Its data set: class names and size of the images.
        folder: Where to write; None takes `export` in the run's folder.
        onnx: Also write `model.onnx`, checked against the model.
        license: What the card states, an identifier of Hugging Face such as "mit"; None states
            that none has been chosen.
        report: Receives a line for each evaluation that the card leaves out.

    Raises:
        InputError: If the license is no identifier, or a library for ONNX is missing.
        RunError: If the run has not been trained, the folder holds anything but an export of this
            run, it cannot be written, or the ONNX file gives other logits.
    """
    _check_license(license)
    folder = folder or run.folder / "export"
    restore_folder(folder)
    _check_ours(folder, run)
    model = load_model(run, data)
    weights = (run.folder / MODEL).read_bytes()
    config = _config(run, data, model, hashlib.sha256(weights).hexdigest())
    shape = (data.channels, *config["image_size"])
    keys = ("architecture", "class_names", "data", "weights")
    checked = export_onnx(model, shape, {key: config[key] for key in keys}) if onnx else None
    evaluations = stored_evaluations(run, report)
    card = model_card(run, config, evaluations, license=license, onnx=checked)
    files = {MODEL: weights, CARD: card.encode(), RECIPE: to_toml(_portable(run.recipe)).encode()}
    if checked:
        files[ONNX] = checked.content
    files[CONFIG] = to_json(config)
    _write(folder, files, model, shape)
    return Export(folder, tuple(sorted(files)), len(evaluations), checked)


def _config(run: Run, data: Data, model: nn.Module, digest: str) -> dict[str, Any]:
    """Return what `config.json` says; see `models.pretrained.ExportConfig`."""
    widths, state = run.recipe.model.widths, model.state_dict()
    return {
        "format": FORMAT,
        "version": VERSION,
        "architecture": run.recipe.model.name,
        "options": {} if widths is None else {"widths": list(widths)},
        "classes": data.classes,
        "channels": data.channels,
        "image_size": list(data.test.images.shape[2:]),
        "mean": state["normalize.mean"].flatten().tolist(),
        "std": state["normalize.std"].flatten().tolist(),
        "class_names": list(data.class_names),
        "data": data.name,
        "threats": {n: t.radius for n, t in threats_from(run.recipe.threats).items()},
        "recipe": run.recipe.name,
        "defense": run.defense,
        "seed": run.seed,
        "weights": digest,
    }


def _portable(recipe: Recipe) -> Recipe:
    """Leave out where files lay on the machine that trained: it says nothing to anyone else."""
    changed = {
        "data": recipe.data.model_copy(update={"folder": None}),
        "evaluation": recipe.evaluation.model_copy(update={"corruptions": None}),
    }
    return recipe.model_copy(update=changed)


def _check_license(license: str | None) -> None:
    if license is not None and not LICENSE.fullmatch(license):
        raise InputError(
            "license: must be an identifier of Hugging Face, such as mit, apache-2.0 or "
            f"cc-by-4.0, got {license!r}."
        )


def _check_ours(folder: Path, run: Run) -> None:
    """Raise RunError unless the folder is free, or holds an export of this run."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not is_export(folder):
        kind = "holds other files and no export" if folder.is_dir() else "is no folder"
        raise RunError(f"{folder} {kind}; choose another --output.")
    try:
        there = read_config(folder)
    except InputError as error:
        raise RunError(f"{error} Remove {folder}, or choose another --output.") from error
    ours = (run.recipe.name, run.defense, run.seed)
    if (there.recipe, there.defense, there.seed) != ours:
        raise RunError(
            f"{folder} holds an export of another run (recipe {there.recipe}, {there.defense}, "
            f"seed {there.seed}); choose another --output."
        )


def _write(folder: Path, files: dict[str, bytes], model: nn.Module, shape: tuple[int, ...]) -> None:
    """Write all files beside the folder, load them back, and only then let them take its name.

    What else lies in an earlier export is kept: it may be a checkout of a repository.
    """
    make_folder(folder.parent)
    with replace_folder(folder, keep=lambda name: name not in FILES) as staged:
        atomic_write_together([(staged / name, content) for name, content in files.items()])
        x = torch.rand((4, *shape), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            if not torch.equal(load_export(staged)(x), model(x)):
                raise RunError(f"{folder}: the files do not give the model back; export it again.")
