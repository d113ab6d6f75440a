"""Exported classifiers: a folder of safetensors and `config.json`, here or on Hugging Face.

Nothing in such a folder is ever executed: the architecture is a name of `MODELS`, the weights are
plain tensors, and both are compared before the classifier takes any memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from multirobust.config.section import Count, Positive, Section, Seed
from multirobust.errors import InputError, lookup_error
from multirobust.models.hub import HUB, is_repository, snapshot
from multirobust.models.weights import load_weights, read_weights

__all__ = ["ExportConfig", "from_pretrained", "is_export", "load_export", "read_config"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT, VERSION = "multirobust model", 1
LARGEST_CONFIG = 1 << 20
"""Bytes; a real one has a few thousand."""

Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Options = dict[str, Count | Annotated[list[Count], Field(min_length=1, max_length=1000)]]


class ExportConfig(Section):
    """What `config.json` says: all that is needed to build the classifier and to use it.

    Args:
        format: Always "multirobust model".
        version: Of the format.
        architecture: A name of `multirobust list models`.
        options: Of the architecture, such as widths.
        classes: Number of classes.
        channels: Number of channels of the images.
        image_size: Height and width of the images that it was trained on.
        mean: Mean of each channel on the [0, 1] pixel scale, 0 for none.
        std: Standard deviation of each channel, 1 for none.
        class_names: One for each class.
        data: Name of the data set.
        threats: Radius by norm that the training was set to, on the [0, 1] pixel scale.
        recipe: Name of the recipe.
        defense: Name of the defense.
        seed: Of the training.
        weights: SHA-256 of `model.safetensors`.
    """

    format: Literal["multirobust model"]
    version: Literal[1]
    architecture: str
    options: Options
    classes: Annotated[int, Field(ge=2, strict=True)]
    channels: Count
    image_size: tuple[Count, Count]
    mean: tuple[Finite, ...]
    std: tuple[Positive, ...]
    class_names: tuple[str, ...]
    data: str
    threats: dict[str, Positive]
    recipe: str
    defense: str
    seed: Seed
    weights: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @model_validator(mode="after")
    def _consistent(self) -> ExportConfig:
        for name, count in (("mean", self.channels), ("std", self.channels)):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} must hold one number for each of {count} channels")
        if len(self.class_names) != self.classes:
            raise ValueError(f"class_names must hold {self.classes} names, one for each class")
        return self


def from_pretrained(source: str | Path, revision: str | None = None) -> nn.Module:
    """Return an exported classifier in evaluation mode, on the CPU, with its very weights.

    Args:
        source: A folder that `multirobust export` wrote, or the id of a Hugging Face repository
            that `multirobust push` wrote, "owner/name" or "hf:owner/name". A folder wins.
        revision: Branch, tag or commit of the repository.

    Returns:
        The classifier: images in [0, 1], float32 (b, c, h, w), to logits (b, classes).

    Raises:
        InputError: If the folder is no export or was changed, a revision is given for a folder,
            or huggingface_hub is not installed.
        RunError: If the repository cannot be downloaded.
    """
    text = str(source)
    folder = Path(text).expanduser()
    if not text.startswith(HUB) and folder.is_dir():
        if revision is not None:
            raise InputError(
                f"revision: {text!r} is a folder here, which has none, got {revision!r}; leave it "
                f"out, or write {HUB}owner/name for a repository."
            )
        return load_export(folder)
    return load_export(_downloaded(text, revision))


def is_export(folder: Path) -> bool:
    """Whether a folder has a `config.json` that calls itself a model of this package."""
    try:
        return _parsed(folder / CONFIG).get("format") == FORMAT
    except InputError:
        return False


def load_export(folder: Path) -> nn.Module:
    """Return the classifier of an exported folder; see `from_pretrained`.

    Raises:
        InputError: If a file is missing or damaged, or the two do not belong together.
    """
    config = read_config(folder)
    path = folder / WEIGHTS
    state = read_weights(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != config.weights:
        raise InputError(
            f"{path}: its SHA-256 is not the one in {CONFIG}: it is truncated, changed or of "
            "another model; copy or export it again."
        )
    model = _built(config, state, folder)
    load_weights(model, state, source=path)
    for name in ("mean", "std"):
        there, said = state[f"normalize.{name}"].flatten().tolist(), list(getattr(config, name))
        if there != said:
            raise InputError(
                f"{folder / CONFIG}: {name} must be that of the weights, {there}, got {said}; "
                "export it again."
            )
    return model.eval()


def read_config(folder: Path) -> ExportConfig:
    """Return what `config.json` says.

    Raises:
        InputError: If it is missing, too large, no JSON, of something else, or breaks a rule; all
            broken rules are in one message.
    """
    path = folder / CONFIG
    content = _parsed(path)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path}: is not the config of a model of this package (format "
            f"{_short(content.get('format'))}); make one with `multirobust export RUN`."
        )
    if content.get("version") != VERSION:
        raise InputError(
            f"{path}: has format version {_short(content.get('version'))}, this release reads "
            f"{VERSION}; use the release that wrote it."
        )
    try:
        return ExportConfig.model_validate(content)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, found['loc'])) or 'config'}: {found['msg']}"
            for found in error.errors(include_url=False, include_input=False)
        ]
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(
            f"{path}: is damaged: {'; '.join(problems[:5])}{more}. Export it again."
        ) from None


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            content = stream.read(LARGEST_CONFIG + 1)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}. Give a folder that `multirobust export` "
            "wrote."
        ) from error
    try:
        if len(content) > LARGEST_CONFIG:
            raise ValueError(f"longer than {LARGEST_CONFIG} bytes")
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no config of a model: {_short(error)}.") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: is no config of a model: it holds a {type(parsed).__name__}.")
    return parsed


def _built(config: ExportConfig, state: Mapping[str, Tensor], folder: Path) -> nn.Module:
    """Build the classifier, once it is known that it has the sizes of the weights.

    A size in a config costs nothing to write; the first build therefore takes no memory.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from multirobust import models

    if config.architecture not in models.MODELS:
        error = lookup_error("model", config.architecture, models.MODELS)
        raise InputError(f"{folder / CONFIG}: architecture: {error}")
    builder = models.MODELS[config.architecture]
    known = getattr(builder, "options", {})
    for name in config.options:
        if name not in known:
            error = lookup_error(f"option of {config.architecture}", name, known)
            raise InputError(f"{folder / CONFIG}: options: {error}")

    def build() -> nn.Module:
        sizes = {"classes": config.classes, "channels": config.channels}
        return builder(mean=config.mean, std=config.std, **sizes, **config.options)

    try:
        with FakeTensorMode(), torch.random.fork_rng(devices=[]):
            wanted = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    except (InputError, RuntimeError, OverflowError) as error:
        raise InputError(f"{folder / CONFIG}: describes no model: {_short(error)}") from error
    found = {name: tuple(value.shape) for name, value in state.items()}
    differing = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
    if differing:
        shown = ", ".join(
            f"{n} {wanted.get(n, 'missing')} against {found.get(n, 'missing')}"
            for n in differing[:3]
        )
        raise InputError(
            f"{folder / CONFIG}: describes another model than {WEIGHTS} holds: {len(differing)} "
            f"weights differ ({shown}); copy or export both again."
        )
    return build()


def _downloaded(text: str, revision: str | None) -> Path:
    repository = text.removeprefix(HUB)
    if not is_repository(repository):
        raise InputError(
            f"source must be a folder that `multirobust export` wrote, or owner/name on Hugging "
            f"Face, got {text!r}, which is neither."
        )
    return snapshot(repository, revision, (CONFIG, WEIGHTS), what=f"source {text!r}")


def _short(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
