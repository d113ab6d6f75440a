"""Attacking a model as a recipe says: as a whole, or a part of it in another process."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final

import torch
from torch import nn

from multirobust import data as datasets
from multirobust import evaluation, training
from multirobust.attacks import threats_from
from multirobust.config import Recipe
from multirobust.data import Data, Split
from multirobust.errors import InputError, RunError
from multirobust.evaluation import Course, Outcomes, Part, Shard, Suite
from multirobust.evaluation.evaluate import check_radii
from multirobust.experiment.building import check_corruptions, load_data, load_model
from multirobust.experiment.evaluated import ADVERSARIAL, PARTIAL
from multirobust.experiment.runs import find_runs
from multirobust.files import remove_leftovers
from multirobust.models.external import load_external
from multirobust.training.run_folder import exclusive

__all__ = [
    "Elsewhere",
    "ExternalSubject",
    "PartialWork",
    "RunSubject",
    "Subject",
    "evaluate_and_save",
    "images_of",
    "suite_of",
]


class Subject(Protocol):
    """What another process needs to know to have a model and its images."""

    def load(self) -> tuple[nn.Module, Split]:
        """Return the model, on the CPU, and the images."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class RunSubject:
    """The model of a run.

    Args:
        folder: Of the run.
        recipe: Whose data settings count.
        split: "test" or "validation".
        weights: Digest of the weights, so that others are not taken for them.
    """

    folder: Path
    recipe: Recipe
    split: str
    weights: str

    def load(self) -> tuple[nn.Module, Split]:
        """See `Subject`."""
        data = load_data(self.recipe.data)
        try:
            run = find_runs([self.folder])[0]
        except InputError as error:  # not the user's fault here, and another machine may see it
            raise RunError(str(error)) from error
        return load_model(run, data), images_of(data, self.split)


@final
@dataclass(frozen=True, kw_only=True)
class ExternalSubject:
    """A classifier and images, both named by a line of text; see `evaluate_external`.

    Args:
        model: See `models.load_external`.
        weights: File of the weights, if the model does not bring them.
        options: Keyword arguments of the function that makes the model.
        data: See `data.load_split`.
        data_folder: Where the files of a data set of ours lie.
        limit: Only the first so many images.
        download: Get the files of a data set of ours that are missing, where it has a download.
        size: Of a folder of images: scale and crop them to so many pixels.
        class_names: Of a folder of images: the classes in the order of the model's logits.
    """

    model: str
    weights: str | None
    options: Mapping[str, Any] | None
    data: str
    data_folder: str | None
    limit: int | None
    download: bool = False
    size: int | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def form(self) -> dict[str, Any]:
        """What decides which images a folder's files become, as JSON values; {} if nothing."""
        said = {"image_size": self.size, "class_names": self.class_names and [*self.class_names]}
        return {name: value for name, value in said.items() if value is not None}

    def load(self) -> tuple[nn.Module, Split]:
        """See `Subject`."""
        options_of = datasets.options_of(self.data) if self.data in datasets.DATASETS else ()
        split = datasets.load_split(
            self.data,
            folder=self.data_folder,
            download=self.download and "download" in options_of,
            limit=self.limit,
            size=self.size,
            classes=self.class_names,
        )
        return load_external(self.model, weights=self.weights, options=self.options), split


@final
@dataclass(frozen=True, kw_only=True)
class PartialWork:
    """An evaluation of which another process does parts.

    Args:
        subject: The model and its images.
        recipe: Its evaluation settings and radii count.
        seed: Of the attacks' random starts.
        shard: Which of the blocks.
        save_images: Whether the adversarial images are kept.
        device: The kind of device that the other processes must have too, such as "cuda".
    """

    subject: Subject
    recipe: Recipe
    seed: int
    shard: Shard
    save_images: bool
    device: str

    def attack(self, part: Part, folder: Path) -> None:
        """Do one part of the evaluation; see `evaluation.Course.attack`.

        Raises:
            InputError: If there is no such device here.
            RunError: If the model, the images or the attacks here are others, or the folder cannot
                be written.
        """
        _course(pickle.dumps(self)).attack(part, folder)


Elsewhere: TypeAlias = Callable[[PartialWork, Sequence[Part], Path], None]
"""Does parts of an evaluation in other processes, into the folder of its partial results."""


@functools.lru_cache(maxsize=1)
def _course(pickled: bytes) -> Course:
    """Return what is to do, kept for the next part of the same evaluation."""
    work: PartialWork = pickle.loads(pickled)
    recipe, config = work.recipe, work.recipe.evaluation
    device = training.choose_device(recipe.training.device)
    if device.type != work.device:
        raise InputError(
            f"training.device: this machine computes on {device.type}, the one that leads the "
            f"evaluation on {work.device}; lead it from a machine with the same kind of device, "
            f"give each part one with --gpus, or use --set training.device=cpu."
        )
    model, images = work.subject.load()
    suite = suite_of(recipe, images)
    return Course(
        model=model.to(device),
        split=images.first(min(config.limit or len(images), len(images))),
        suite=suite,
        mode=suite.mode if config.mode == "auto" else config.mode,
        batch_size=config.batch_size,
        block_size=config.block_size,
        shard=work.shard,
        seed=work.seed,
        device=device,
        keep_images=work.save_images,
    )


def evaluate_and_save(
    model: nn.Module,
    images: Split,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    shard: Shard | None = None,
    save_images: bool = False,
    device: torch.device,
    subject: Subject,
    elsewhere: Elsewhere | None = None,
    **options: Any,
) -> Outcomes:
    """Attack a model as a recipe says and write the outcomes into a folder.

    Args:
        model: Any classifier.
        images: What it classifies.
        recipe: Its evaluation settings and radii count.
        folder: For the outcomes; what is done so far is kept there until the end.
        seed: Of the attacks' random starts.
        shard: Attack only a part of the images.
        save_images: Also keep the adversarial images, in `adversarial/`.
        device: Where the model is.
        subject: How another process gets the model and its images.
        elsewhere: Does parts of the evaluation in other processes, before this one goes on.
        options: Others of `evaluation.evaluate_suite`.

    Raises:
        InputError: If a setting makes no sense for these images; no folder is made.
        RunError: If the folder cannot be written, or another process evaluates into it.
    """
    check_corruptions(recipe)
    suite = suite_of(recipe, images)
    config, shard = recipe.evaluation, shard or Shard()
    work = PartialWork(
        subject=subject,
        recipe=recipe,
        seed=seed,
        shard=shard,
        save_images=save_images,
        device=device.type,
    )
    with exclusive(folder, doing="evaluates"):
        remove_leftovers(folder / ADVERSARIAL)
        return evaluation.evaluate_suite(
            model,
            images,
            suite,
            mode=None if config.mode == "auto" else config.mode,
            batch_size=config.batch_size,
            block_size=config.block_size,
            limit=config.limit,
            seed=seed,
            shard=shard,
            device=device,
            ahead=functools.partial(elsewhere, work) if elsewhere else None,
            partial=folder / PARTIAL,
            images=folder / ADVERSARIAL if save_images else None,
            keep=lambda outcomes: evaluation.save(outcomes, folder),
            **options,
        )


def images_of(data: Data, split: str) -> Split:
    """Return the images that an evaluation is of.

    Raises:
        InputError: If there are none.
    """
    images = {"test": data.test, "validation": data.validation}.get(split)
    if images is None:
        raise InputError(
            f"split: must be 'test', or 'validation' for a run that was trained with "
            f"data.validation above 0, got {split!r} and no such images."
        )
    return images


def suite_of(recipe: Recipe, images: Split) -> Suite:
    """Return the attacks that a recipe asks for.

    Raises:
        InputError: If a setting makes no sense for these images, a radius among them.
    """
    config = recipe.evaluation
    suite = evaluation.build_suite(config.suite, threats_from(recipe.threats), config, images)
    check_radii(suite, images)
    return suite
