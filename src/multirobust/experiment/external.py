"""Evaluating any classifier on any images, both named by a line of text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multirobust import data as datasets
from multirobust import training
from multirobust.config import Recipe, load_recipe
from multirobust.errors import DataError, InputError
from multirobust.evaluation import EvaluationDisplay, Outcomes, Shard, load
from multirobust.experiment.pipeline import evaluate_and_save
from multirobust.experiment.runs import make_folder
from multirobust.models.external import load_external
from multirobust.models.weights import weights_digest

__all__ = ["evaluate_external"]

FALLBACK = "cifar10"
"""Whose attack settings data of the user's own are attacked with; its radii must be given."""


def evaluate_external(
    model: str,
    data: str,
    *,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
    data_folder: str | None = None,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    name: str | None = None,
    seed: int = 0,
    shard: Shard | None = None,
    save_images: bool = False,
    strict: bool = False,
    report: Callable[[str], None] = lambda line: None,
    display: EvaluationDisplay | None = None,
) -> tuple[Outcomes, Path]:
    """Attack a classifier that no run of ours made, and write the outcomes into a folder.

    Args:
        model: See `models.load_external`.
        data: See `data.load_split`.
        weights: File of the weights, if the model does not bring them.
        options: Keyword arguments of the function that makes the model.
        data_folder: Where the files of a data set of ours lie.
        overrides: Changes of the recipe of the data set, such as "threats.preset=e_at". Images of
            one's own need them to set the radii.
        output: Folder of the outcomes; None makes one below `evaluations`.
        name: What tables call the model; None takes the last part of its spec.
        seed: Of the attacks' random starts.
        shard: Attack only a part of the images.
        save_images: Also keep the adversarial images.
        strict: Make every finding of the audit an error.
        report: Receives lines on what happens.
        display: Shows progress.

    Returns:
        The outcomes and their folder. What was evaluated so before is read back.

    Raises:
        InputError: If the model or the data cannot be had so, or the radii are not known.
        DataError: If images are missing or damaged.
        RunError: If the folder cannot be written.
    """
    recipe = _recipe(data, overrides)
    limit = recipe.evaluation.limit
    split = datasets.load_split(data, folder=data_folder or recipe.data.folder, limit=limit)
    classifier = load_external(model, weights=weights, options=options)
    name, shard = name or _short(model), shard or Shard()
    folder = output or _default_folder(name, recipe.evaluation.suite, shard)
    make_folder(folder)
    manifest = {
        "name": name,
        "model": model,
        "weights": weights_digest(classifier),
        "weights_file": weights,
        "options": dict(options or {}),
        "data": data,
        "pixels": hashlib.sha256(split.images.numpy().tobytes()).hexdigest(),
        "evaluation": _settings(recipe, shard, seed),
    }
    known = _known(folder, manifest, save_images)
    if known is not None:
        report(f"already evaluated with these settings in {folder}")
        return known, folder
    device = training.choose_device(recipe.training.device)
    outcomes = evaluate_and_save(
        classifier.to(device),
        split,
        recipe,
        folder,
        seed=seed,
        shard=shard,
        device=device,
        save_images=save_images,
        strict=strict,
        manifest=manifest,
        report=report,
        display=display,
    )
    return outcomes, folder


def _recipe(data: str, overrides: Sequence[str]) -> Recipe:
    if data in datasets.DATASETS:
        return load_recipe(data, overrides)
    if not any(override.startswith("threats.") for override in overrides):
        raise InputError(
            "data: the radii for images of your own are not known; give a preset with --threats "
            "(see `multirobust list threats`), or each radius with --set threats.linf=0.03 and "
            "so on."
        )
    return load_recipe(FALLBACK, overrides)


def _default_folder(name: str, suite: str, shard: Shard) -> Path:
    part = f"-{shard.part}of{shard.of}" if shard.of > 1 else ""
    return Path("evaluations") / f"{name}-{suite}{part}"


def _settings(recipe: Recipe, shard: Shard, seed: int) -> dict[str, Any]:
    """Return what decides the outcomes of a given model on given images, as JSON values."""
    return {
        **recipe.evaluation.model_dump(mode="json"),
        **recipe.threats.model_dump(mode="json"),
        "shard": str(shard),
        "seed": seed,
    }


def _short(model: str) -> str:
    last = re.split(r"[:/]", model.rstrip("/"))[-1]
    return re.sub(r"[^\w.-]+", "_", last) or "model"


def _known(folder: Path, manifest: Mapping[str, Any], save_images: bool) -> Outcomes | None:
    """Return the outcomes in a folder if they are of the same model, images and settings.

    Raises:
        InputError: If they are of others.
    """
    if not (folder / "outcomes.json").is_file():
        return None
    try:
        known = load(folder)
    except DataError:
        return None
    facts = ("name", "model", "options", "weights", "data", "pixels")
    if any(known.manifest.get(key) != manifest[key] for key in facts):
        raise InputError(
            f"output: {folder} holds the evaluation of {known.manifest.get('model')!r} on "
            f"{known.manifest.get('data')!r}, of other weights, options or images than now; choose "
            "another --output, or remove it."
        )
    same = known.manifest.get("evaluation") == manifest["evaluation"]
    return known if same and (not save_images or (folder / "adversarial").is_dir()) else None
