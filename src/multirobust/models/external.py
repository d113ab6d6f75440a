"""Any classifier by one line of text: a Python function, a stored run, a published model."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multirobust.config import load_recipe
from multirobust.errors import InputError, RunError, lookup_error
from multirobust.models.callables import call_by_name, checked_model
from multirobust.models.hub import HUB, snapshot
from multirobust.models.pretrained import CONFIG, is_export, load_export
from multirobust.models.weights import load_weights, read_weights, without_prefixes

__all__ = ["fetch_run", "load_external", "model_arguments"]

ROBUSTBENCH = "robustbench:"
WEIGHTS, RECIPE = "model.safetensors", "recipe.toml"
RUN_FILES = (WEIGHTS, RECIPE, CONFIG, "run.json", "training.json")
FORMS = (
    "package.module:function, path/to/file.py:function, a run folder, hf:owner/name, "
    "robustbench:NAME, or a name of `multirobust list models`"
)
ROBUSTBENCH_THREATS = {name.lower(): name for name in ("Linf", "L2", "corruptions")}
SHOWN = 8


def load_external(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    channels: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return a classifier on the CPU, in evaluation mode.

    The forms of a spec:

    - `package.module:function` or `path/to/file.py:function`: called, or taken as it is if it is
      an `nn.Module` already; see `callables.call_by_name`.
    - A name of `MODELS`, such as `small_cnn`: an architecture of ours, which needs weights.
    - A run folder, such as `runs/demo/sat-s0`, or what `multirobust export` made of one, here or
      on Hugging Face (`hf:owner/name`); see `fetch_run`. It brings its own weights.
    - `robustbench:NAME[:dataset:threat]`: a model of RobustBench, by default for cifar10 and Linf.

    The code of a model is run: load only what you trust. Modules are looked for in the current
    folder first, as `python -m` does. The global random state is left alone.

    Args:
        spec: One of the forms above.
        weights: A file for `read_weights`; it must fit the model exactly. Not for a run folder.
        classes: For an architecture of ours; None takes it from the weights.
        channels: The same, of the images.
        options: Keyword arguments of the function, of `models.build` for an architecture of ours
            (such as `widths`, or `mean` and `std` where the weights hold none), or of RobustBench's
            `load_model` (such as `model_dir`).

    Raises:
        InputError: If the spec, the weights or an option is wrong, the function raises or returns
            no `nn.Module`, or an optional library is missing.
        RunError: If a folder holds no run, or it cannot be downloaded.
    """
    spec, options = str(spec), dict(options or {})
    folder = fetch_run(spec)
    with torch.random.fork_rng(devices=[]):
        if folder is not None:
            if weights is not None or options:
                raise InputError(
                    f"model {spec!r} brings its own weights and settings; leave out weights and "
                    "options (--weights, --model-arg)."
                )
            return load_export(folder) if is_export(folder) else _from_run(folder).eval()
        if spec.startswith(ROBUSTBENCH):
            model = _from_robustbench(spec, options)
        elif ":" in spec:
            model = call_by_name(spec, options)
        else:
            given = {"classes": classes, "channels": channels} | options
            return _from_table(spec, weights, given).eval()
        if weights is not None:
            load_weights(model, read_weights(weights), source=weights)
        return model.cpu().eval()


def fetch_run(spec: str | Path) -> Path | None:
    """Return the local run folder or export that a spec names, downloaded from Hugging Face.

    Of a repository only the weights, the recipe and the facts of a run are downloaded, no code.

    Args:
        spec: A folder, or `hf:owner/name`, with `/subfolder` and `@revision` if need be.

    Returns:
        The folder, or None if the spec is of another kind.

    Raises:
        InputError: If huggingface_hub is not installed, or the id is none.
        RunError: If it cannot be downloaded, or holds no run.
    """
    from multirobust.models import MODELS

    spec = str(spec)
    if spec.startswith(HUB):
        folder = _download(spec)
    elif spec not in MODELS and Path(spec).expanduser().is_dir():
        folder = Path(spec).expanduser()
    else:
        return None
    lacking = [name for name in (RECIPE, WEIGHTS) if not (folder / name).is_file()]
    if lacking and not is_export(folder):
        inside = sorted(p.parent.relative_to(folder).as_posix() for p in folder.glob(f"*/{RECIPE}"))
        way = (
            f"name one of the runs in it: {', '.join(inside[:SHOWN])}"
            if inside
            else ("name a run folder, as `multirobust train` writes it")
        )
        raise RunError(
            f"model {spec!r} holds no trained run, {' and '.join(lacking)} missing; {way}."
        )
    return folder


def model_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """Read `name=value` texts as keyword arguments; values are TOML, a bare word is text.

    >>> model_arguments(["widths=[8, 16]", "variant=wide"])
    {'widths': [8, 16], 'variant': 'wide'}

    Raises:
        InputError: If a text is not written so, or a name stands twice.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier() or name in arguments:
            problem = "stands twice" if name in arguments else "is not written name=value"
            raise InputError(f"--model-arg {text!r} {problem}; write it as in width=64, once.")
        try:
            arguments[name] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            arguments[name] = value
    return arguments


def _from_run(folder: Path) -> nn.Module:
    try:
        config = load_recipe(folder / RECIPE).model
    except InputError as error:
        raise RunError(f"{folder / RECIPE} is damaged or of another version: {error}") from error
    options = {} if config.widths is None else {"widths": config.widths}
    return _from_table(config.name, folder / WEIGHTS, options)


def _from_table(name: str, weights: str | Path | None, options: Mapping[str, Any]) -> nn.Module:
    """Build an architecture of ours in the sizes of its weights, and load them."""
    from multirobust import models

    if name not in models.MODELS:
        raise InputError(f"{lookup_error('model', name, models.MODELS)} Or give {FORMS}.")
    if weights is None:
        raise InputError(
            f"model {name!r} is an architecture, which knows nothing without weights; give weights "
            "(--weights), or a run folder."
        )
    state = without_prefixes(read_weights(weights), ("head.weight", "normalize.mean"))
    sizes = {"classes": state.get("head.weight"), "channels": state.get("normalize.mean")}
    axes = {"classes": 0, "channels": 1}
    given = {key: value for key, value in options.items() if value is not None}
    for key, tensor in sizes.items():
        if key not in given and tensor is not None and tensor.ndim > axes[key]:
            given[key] = tensor.shape[axes[key]]
    model = models.build(name, **{"classes": None, **given})
    load_weights(model, _with_statistics(state, model, given, weights), source=weights)
    return model


def _with_statistics(
    state: dict[str, Tensor], model: nn.Module, given: Mapping[str, Any], source: str | Path
) -> dict[str, Tensor]:
    """Add the given mean and std to weights that have none; those that differ are an error."""
    own = model.state_dict()
    for key in ("mean", "std"):
        name = f"normalize.{key}"
        if key not in given:
            continue
        there = state.setdefault(name, own[name])
        if there.shape != own[name].shape or not torch.allclose(there, own[name], atol=1e-4):
            raise InputError(
                f"{key} must be that of the training, {there.flatten().tolist()} in {source}, got "
                f"{given[key]!r}; leave it out, the weights bring it."
            )
    return state


def _from_robustbench(spec: str, options: Mapping[str, Any]) -> nn.Module:
    name, data, threat, *rest = [*spec.removeprefix(ROBUSTBENCH).split(":"), "", ""]
    if not name or any(rest):
        raise InputError(f"model must be written robustbench:NAME[:dataset:threat], got {spec!r}.")
    data, threat = data or "cifar10", (threat or "Linf").lower()
    if threat not in ROBUSTBENCH_THREATS:
        raise lookup_error("RobustBench threat", threat, ROBUSTBENCH_THREATS)
    threat = ROBUSTBENCH_THREATS[threat]
    try:
        load_model = importlib.import_module("robustbench.utils").load_model
    except ModuleNotFoundError as error:
        raise InputError(
            f"model {spec!r} needs RobustBench, but there is no module {error.name!r}; install it: "
            "pip install git+https://github.com/RobustBench/robustbench.git"
        ) from error
    try:
        model = load_model(model_name=name, dataset=data, threat_model=threat, **options)
    except Exception as error:
        raise InputError(
            f"model {spec!r}: RobustBench could not load {name!r} for {data} and {threat}: "
            f"{type(error).__name__}: {error}. Its names are at https://robustbench.github.io."
        ) from error
    return checked_model(model, spec)


def _download(spec: str) -> Path:
    pattern = r"([\w.-]+/[\w.-]+)(?:/([\w./-]+?))?/?(?:@(.+))?"
    match = re.fullmatch(pattern, spec.removeprefix(HUB))
    if match is None:
        raise InputError(
            f"model must be written hf:owner/name[/subfolder][@revision], got {spec!r}."
        )
    repository, inner, revision = match.groups()
    patterns = [f"{inner}/{file}" if inner else f"*{file}" for file in RUN_FILES]
    return snapshot(repository, revision, patterns, what=f"model {spec!r}") / (inner or "")
