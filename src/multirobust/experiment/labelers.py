"""Who labels images for self-training: the model of a run, or any other classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from multirobust import training
from multirobust.config import DataConfig, load_recipe
from multirobust.data import Data, Split
from multirobust.errors import InputError
from multirobust.evaluation.classifier import check_classifier, check_model
from multirobust.experiment import building
from multirobust.experiment.runs import Run
from multirobust.models.external import load_external
from multirobust.models.weights import weights_digest

__all__ = ["ExternalModel", "Labeler", "labeler"]

SETTINGS = "cifar10"
"""Whose device and batch size a model is used with that no run of ours made."""


@final
@dataclass(frozen=True, kw_only=True)
class ExternalModel:
    """A classifier that no run of ours made, named by a line of text.

    Args:
        spec: See `models.load_external`.
        weights: File of the weights, if the model does not bring them.
        options: Keyword arguments of the function that makes the model.
    """

    spec: str
    weights: str | Path | None = None
    options: Mapping[str, Any] | None = None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Labeler:
    """A classifier, loaded, and what is known of it.

    Args:
        name: How messages call it.
        classifier: On its device, in evaluation mode.
        device: Where it is.
        batch_size: Images that it is asked about at once.
        facts: What the file of pseudo-labels says of it, JSON values.
        config: What it was trained on; None if that is not known.
        data: The same, loaded.
    """

    name: str
    classifier: nn.Module
    device: torch.device
    batch_size: int
    facts: Mapping[str, Any]
    config: DataConfig | None = None
    data: Data | None = None

    def names(self, images: Split, names: tuple[str, ...] | None, source: str) -> tuple[str, ...]:
        """Return the names of its classes, once it is known that it takes these images.

        Args:
            images: With their true labels, or with zeros where those are not known.
            names: Of the classes of the images; None where they are not known.
            source: Names the images in messages.

        Raises:
            InputError: If it does not take them, returns no logits, or has other classes.
        """
        shape = tuple(images.images.shape[1:])
        if self.data is not None:
            takes = tuple(self.data.train.images.shape[1:])
            if shape != takes:
                raise InputError(
                    f"DATA: {source} must have images of shape {takes}, as the model of "
                    f"{self.name} takes, got {shape}; scale or convert them."
                )
            return self.data.class_names
        check_model(self.classifier, images)
        classes = check_classifier(self.classifier, images).shape[1]
        if names is None:
            return tuple(map(str, range(classes)))
        if classes != len(names):
            raise InputError(
                f"DATA: {source} has {len(names)} classes, the model {self.name} must have as "
                f"many, got {classes} logits; use a model of these classes, or save the images "
                "alone in an .npz file, which are then labeled with the model's own classes."
            )
        return names


def labeler(model: Run | ExternalModel, data_folder: str | None) -> Labeler:
    """Load who labels.

    Args:
        model: A run that has been trained, or any other classifier.
        data_folder: Where the files of a run's data set lie; None takes the run's.

    Raises:
        DataError: If the data of the run are missing or damaged.
        InputError: If the model cannot be had so.
        RunError: If the run has not ended.
    """
    if isinstance(model, ExternalModel):
        return _of_model(model)
    config = model.recipe.data
    if data_folder is not None:
        config = config.model_copy(update={"folder": data_folder})
    data = building.load_data(config)
    device = training.choose_device(model.recipe.training.device)
    digest = building.weights_digest(model)
    return Labeler(
        name=str(model.folder),
        classifier=building.load_model(model, data).to(device),
        device=device,
        batch_size=model.recipe.evaluation.batch_size,
        facts={"run": model.name, "recipe": model.recipe.name, "weights": digest},
        config=config,
        data=data,
    )


def _of_model(model: ExternalModel) -> Labeler:
    settings = load_recipe(SETTINGS)
    options = dict(model.options or {})
    classifier = load_external(model.spec, weights=model.weights, options=options)
    device = training.choose_device(settings.training.device)
    facts = {
        "model": model.spec,
        "weights_file": None if model.weights is None else str(model.weights),
        "options": json.loads(json.dumps(options, default=str)),
        "weights": weights_digest(classifier),
    }
    return Labeler(
        name=model.spec,
        classifier=classifier.to(device),
        device=device,
        batch_size=settings.evaluation.batch_size,
        facts=facts,
    )
