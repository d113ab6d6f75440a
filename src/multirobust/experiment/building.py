"""The parts of a run: its data, its model and its defense, fresh or as trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import nn

from multirobust import data as datasets
from multirobust import defenses, models
from multirobust.config import DataConfig, Recipe
from multirobust.data import Augmentation, CropFlip, Data
from multirobust.defenses import Defense
from multirobust.errors import DataError, RunError
from multirobust.experiment.runs import DEFENSE, MODEL, Run
from multirobust.files import atomic_write

__all__ = [
    "build_defense",
    "build_model",
    "check_corruptions",
    "load_data",
    "load_defense",
    "load_model",
    "pinned",
    "save_weights",
    "weights_digest",
]

_AUGMENTATIONS: Mapping[str, Augmentation | None] = MappingProxyType(
    {"none": None, "flip": CropFlip(0), "crop_flip": CropFlip(4)}
)


def load_data(config: DataConfig) -> Data:
    """Load the data that a recipe names.

    Raises:
        DataError: If they are missing, damaged, or other training images than the recipe notes.
        InputError: If an argument breaks its rule.
    """
    options: dict[str, Any] = {
        "train_limit": config.train_limit,
        "test_limit": config.test_limit,
        "validation": config.validation,
    }
    if config.own:
        options |= {"size": config.size, "class_names": config.class_names, "cache": config.cache}
        data = datasets.own(config.name, **options, on_disk=config.placement == "disk")
    else:
        options |= {"folder": config.folder, "download": config.download, "cache": config.cache}
        known = datasets.options_of(config.name)
        data = datasets.build(config.name, **{k: v for k, v in options.items() if k in known})
    if config.digest is not None and data.digest != config.digest:
        raise DataError(
            f"{config.name}: the training images must be those that the recipe notes (digest "
            f"{config.digest[:12]}), got others ({(data.digest or 'none')[:12]}). Restore them, or "
            "drop data.digest and train into another --output."
        )
    kept = "host" if config.placement == "disk" else config.placement
    data = replace(data, placement=kept)
    if config.augmentation == "auto":
        return data
    return replace(data, augmentation=_AUGMENTATIONS[config.augmentation])


def check_corruptions(recipe: Recipe) -> None:
    """Make sure that published corruptions are there if a recipe is evaluated on them, or get them.

    Raises:
        DataError: If a file is missing, damaged, or cannot be downloaded.
    """
    config = recipe.evaluation
    if config.suite == "corruptions" and config.corruptions is not None:
        datasets.check_cifar10c(config.corruptions, download=recipe.data.download)


def pinned(recipe: Recipe, data: Data) -> Recipe:
    """Return the recipe with the digests of its training images, if no name stands for them."""
    more = data.unlabeled.digest if data.unlabeled else None
    found = {"digest": data.digest, "unlabeled_digest": more}
    noted = {name: getattr(recipe.data, name) or value for name, value in found.items()}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=noted)})


def build_model(recipe: Recipe, data: Data, seed: int) -> nn.Module:
    """Return the fresh classifier of a recipe, its weights drawn from the seed."""
    options = {} if recipe.model.widths is None else {"widths": recipe.model.widths}
    return models.build(
        recipe.model.name,
        classes=data.classes,
        channels=data.channels,
        mean=data.mean if recipe.model.normalize else None,
        std=data.std if recipe.model.normalize else None,
        seed=seed,
        **options,
    )


def build_defense(run: Run, data: Data) -> Defense[Any]:
    """Return the fresh defense of a run."""
    return defenses.build(run.defense, run.recipe, channels=data.channels, seed=run.seed)


def save_weights(run: Run, model: nn.Module, defense: nn.Module) -> None:
    """Write what was learned, each file whole or not at all.

    Raises:
        RunError: If a file cannot be written.
    """
    for name, module in ((MODEL, model), (DEFENSE, defense)):
        atomic_write(run.folder / name, _tensor_bytes(module))


def load_model(run: Run, data: Data) -> nn.Module:
    """Return the trained classifier of a run, in evaluation mode, on the CPU.

    Raises:
        RunError: If the run has not ended, or its weights are damaged.
    """
    model = build_model(run.recipe, data, run.seed)
    _load_tensors(run, MODEL, model)
    return model.eval()


def load_defense(run: Run, data: Data) -> Defense[Any]:
    """Return the defense of a run with what it learned, on the CPU.

    Raises:
        RunError: If the run has not ended, or its weights are damaged.
    """
    defense = build_defense(run, data)
    _load_tensors(run, DEFENSE, defense)
    return defense


def weights_digest(run: Run) -> str:
    """Return the SHA-256 of the trained classifier's file.

    Raises:
        RunError: If the run has not ended.
    """
    return hashlib.sha256(_read(run, MODEL)).hexdigest()


def _tensor_bytes(module: nn.Module) -> bytes:
    from safetensors.torch import save

    state = module.state_dict()
    return save(
        {name: value.cpu().contiguous() for name, value in state.items() if hasattr(value, "cpu")}
    )


def _load_tensors(run: Run, name: str, module: nn.Module) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = run.folder / name
    again = "Remove this file and train the run again: its last checkpoint makes it anew."
    try:
        missing, foreign = module.load_state_dict(load(_read(run, name)), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} is damaged or of another model: {error}. {again}") from error
    missing = [key for key in missing if not key.endswith("_extra_state")]
    if missing or foreign:
        raise RunError(
            f"{path} is of another model: missing {missing}, not expected {foreign}. {again}"
        )


def _read(run: Run, name: str) -> bytes:
    try:
        return (run.folder / name).read_bytes()
    except FileNotFoundError:
        raise RunError(
            f"{run.folder} has no {name}: it has not finished training. Run the command that "
            "trained it again."
        ) from None
    except OSError as error:
        raise RunError(f"{run.folder / name} cannot be read: {error.strerror}.") from error
