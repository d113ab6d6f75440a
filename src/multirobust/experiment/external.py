"""Evaluating any classifier on any images, both named by a line of text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from multirobust import data as datasets
from multirobust import training
from multirobust.attacks import threats_from
from multirobust.config import Recipe, load_recipe
from multirobust.data import Split
from multirobust.errors import DataError, InputError
from multirobust.evaluation import EvaluationDisplay, Outcomes, Shard, build_suite, load
from multirobust.evaluation.evaluate import refuse_findings
from multirobust.experiment.attacking import (
    Elsewhere,
    ExternalSubject,
    evaluate_and_save,
    suite_of,
)
from multirobust.experiment.evaluated import images_kept, tidy
from multirobust.experiment.runs import make_folder
from multirobust.models.weights import weights_digest
from multirobust.threats import Threat

__all__ = ["evaluate_external", "recipe_of_images", "short_name"]

FALLBACK = "cifar10"
"""Whose attack settings data of the user's own are attacked with; its radii must be given."""


def evaluate_external(
    model: str,
    data: str,
    *,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
    data_folder: str | None = None,
    size: int | None = None,
    class_names: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    name: str | None = None,
    seed: int = 0,
    shard: Shard | None = None,
    save_images: bool = False,
    strict: bool = False,
    report: Callable[[str], None] = lambda line: None,
    display: EvaluationDisplay | None = None,
    elsewhere: Elsewhere | None = None,
) -> tuple[Outcomes, Path]:
    """Attack a classifier that no run of ours made, and write the outcomes into a folder.

    Args:
        model: See `models.load_external`.
        data: See `data.load_split`.
        weights: File of the weights, if the model does not bring them.
        options: Keyword arguments of the function that makes the model.
        data_folder: Where the files of a data set of ours lie.
        size: Of a folder of images: scale and crop them to so many pixels.
        class_names: Of a folder of images: its subfolders in the order of the model's logits;
            None sorts them.
        overrides: Changes of the recipe of the data set, such as "threats.preset=e_at". Images of
            one's own need them to set the radii.
        output: Folder of the outcomes; None makes one below `evaluations`, named after the model,
            the suite, and how the evaluation departs from the recipe of the data.
        name: What tables call the model; None takes the last part of its spec.
        seed: Of the attacks' random starts.
        shard: Attack only a part of the images.
        save_images: Also keep the adversarial images.
        strict: Make every finding of the audit an error.
        report: Receives lines on what happens.
        display: Shows progress.
        elsewhere: Does parts of the evaluation in other processes, before this one goes on.

    Returns:
        The outcomes and their folder. What was evaluated so before is read back; the folder of
        another evaluation is refused.

    Raises:
        InputError: If the model or the data cannot be had so, the radii are not known, or the
            folder holds another evaluation.
        DataError: If images are missing or damaged.
        RunError: If the folder cannot be written.
    """
    recipe = recipe_of_images(data, overrides)
    shard = shard or Shard()
    subject = ExternalSubject(
        model=model,
        weights=weights,
        options=options,
        data=data,
        data_folder=data_folder or recipe.data.folder,
        limit=recipe.evaluation.limit,
        download=recipe.data.download,
        size=size,
        class_names=None if class_names is None else tuple(class_names),
    )
    settings = subject.form | _settings(recipe, shard, seed)
    classifier, split = subject.load()
    name = name or short_name(model)
    folder = output or _default_folder(name, data, shard, settings)
    _open(folder, recipe, split)
    manifest = _manifest(name, subject, classifier, split, settings)
    known = _known(folder, manifest, report, save_images=save_images, strict=strict)
    if known is not None:
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
        elsewhere=elsewhere,
        subject=subject,
    )
    return outcomes, folder


def recipe_of_images(data: str, overrides: Sequence[str]) -> Recipe:
    """Return how models are attacked on a data set of ours or on images of one's own.

    Raises:
        InputError: If there are no such images, or their radii are not known.
        DataError: If they cannot be read.
    """
    if data in datasets.DATASETS:
        return load_recipe(data, overrides)
    if not Path(data).expanduser().exists():
        datasets.load_split(data)  # says what there is
    recipe = load_recipe(FALLBACK, overrides)
    config, said = recipe.evaluation, {text.partition("=")[0].strip() for text in overrides}
    suite = build_suite(config.suite, threats_from(recipe.threats), config)
    balls = [named.threat for named in suite.attacks if isinstance(named.threat, Threat)]
    norms = dict.fromkeys(ball.norm for ball in balls)
    unknown = [f"threats.{norm}" for norm in norms if f"threats.{norm}" not in said]
    if unknown and "threats.preset" not in said:
        raise InputError(
            f"data: the radii for images of your own are not known ({', '.join(unknown)}); give a "
            "preset with --threats (see `multirobust list threats`), or each radius with --set "
            "threats.linf=0.03 and so on."
        )
    return recipe


def _open(folder: Path, recipe: Recipe, split: Split) -> None:
    """Make the folder of an evaluation, unless a setting makes no sense for these images."""
    suite_of(recipe, split)
    make_folder(folder)


def _manifest(
    name: str,
    subject: ExternalSubject,
    classifier: nn.Module,
    split: Split,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the outcomes say of the model, the images and the evaluation."""
    return {
        "name": name,
        "model": subject.model,
        "weights": weights_digest(classifier),
        "weights_file": subject.weights,
        "options": dict(subject.options or {}),
        "data": subject.data,
        "pixels": hashlib.sha256(split.images.numpy().tobytes()).hexdigest(),
        "evaluation": settings,
    }


def _default_folder(name: str, data: str, shard: Shard, settings: Mapping[str, Any]) -> Path:
    """Return a folder that the evaluations of a model with other settings do not share."""
    whole = {key: value for key, value in settings.items() if key != "shard"}
    suite = whole["suite"]
    usual = load_recipe(data if data in datasets.DATASETS else FALLBACK)
    parts = [name, suite]
    if whole != {**_settings(usual, Shard(), 0), "suite": suite}:
        parts.append(hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8])
    if shard.of > 1:
        parts.append(str(shard).replace("/", "of"))
    return Path("evaluations") / "-".join(parts)


def _settings(recipe: Recipe, shard: Shard, seed: int) -> dict[str, Any]:
    """Return what decides the outcomes of a given model on given images, as JSON values."""
    threats = threats_from(recipe.threats)
    part = {"shard": str(shard)} if shard.of > 1 else {}
    return part | {
        **recipe.evaluation.model_dump(mode="json"),
        "threats": {norm: repr(threat) for norm, threat in threats.items()},
        "seed": seed,
    }


def short_name(model: str) -> str:
    """Return what tables call a model that has no other name."""
    last = re.split(r"[:/]", model.rstrip("/"))[-1]
    return re.sub(r"[^\w.-]+", "_", last) or "model"


def _known(
    folder: Path,
    manifest: Mapping[str, Any],
    report: Callable[[str], None],
    *,
    save_images: bool,
    strict: bool,
) -> Outcomes | None:
    """Return the outcomes in a folder, or None if there are none, or too few images are kept.

    Raises:
        InputError: If they are of another model, other images or settings, or, with strict, if
            the audit found anything.
    """
    if not (folder / "outcomes.json").is_file():
        return None
    try:
        known = load(folder)
    except DataError:
        return None
    facts = ("name", "model", "options", "weights", "data", "pixels")
    changed = [key for key in facts if known.manifest.get(key) != manifest[key]]
    if changed:
        raise InputError(
            f"output: {folder} holds the evaluation of {known.manifest.get('model')!r} on "
            f"{known.manifest.get('data')!r}, of another {' and '.join(changed)} than now; choose "
            "another --output, or remove it."
        )
    _check_settings(folder, known.manifest.get("evaluation"), manifest["evaluation"])
    if strict:
        refuse_findings(known.manifest.get("audit") or [])
    if save_images and not images_kept(folder, known):
        return None
    tidy(folder)
    report(f"already evaluated with these settings in {folder}")
    return known


def _check_settings(folder: Path, there: object, here: Mapping[str, Any]) -> None:
    known = there if isinstance(there, dict) else {}
    changed = [n for n in {**known, **here} if known.get(n) != here.get(n)]
    if changed:
        told = ", ".join(f"{n} {known.get(n)!r} there, {here.get(n)!r} here" for n in changed)
        raise InputError(
            f"output: {folder} holds an evaluation with other settings ({told}); choose another "
            "--output, or remove it."
        )
