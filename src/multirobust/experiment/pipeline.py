"""Training and evaluating runs, with everything kept in their folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from multirobust import data as datasets
from multirobust import defenses, evaluation, models, training
from multirobust.attacks import threats_from
from multirobust.config import DataConfig, Recipe
from multirobust.data import Data
from multirobust.defenses import Defense
from multirobust.errors import ConfigError, InputError, RunError
from multirobust.evaluation import Outcomes
from multirobust.experiment.runs import Run, identity, open_run, read_json, to_json
from multirobust.files import atomic_write
from multirobust.provenance import provenance
from multirobust.report.tables import RunResult
from multirobust.training import ProgressDisplay

__all__ = [
    "build_model",
    "evaluate_run",
    "load_data",
    "load_defense",
    "load_model",
    "result_of",
    "train_run",
]


def load_data(config: DataConfig) -> Data:
    """Load the data set that a recipe names."""
    options: dict[str, Any] = {
        "train_limit": config.train_limit,
        "test_limit": config.test_limit,
        "validation": config.validation,
    }
    if config.name != "digits":
        options |= {"folder": config.folder, "download": config.download}
    elif config.folder is not None:
        raise ConfigError(["data.folder: digits are embedded and have no folder; drop it."])
    data = datasets.build(config.name, **options)
    if config.augmentation == "none":
        data = replace(data, augmentation=None)
    return data


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


def train_run(
    run: Run,
    data: Data,
    *,
    display: ProgressDisplay | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train a run, from where it stands; nothing happens if it has ended.

    Raises:
        RunError: If the folder holds another run or cannot be written.
        Interrupted: If `stop` said so; the run is saved.
    """
    open_run(run)
    if run.trained:
        return
    recipe = run.recipe
    fit = training.fit(
        build_model(recipe, data, run.seed),
        data,
        defenses.build(run.defense, recipe, channels=data.channels, seed=run.seed),
        recipe.training,
        seed=run.seed,
        batch_norm=recipe.attack.batch_norm,
        folder=run.folder,
        identity=identity(recipe, run.defense, run.seed),
        display=display,
        title=run.name,
        stop=stop,
    )
    _save_tensors(run.folder / "model.safetensors", fit.model)
    _save_tensors(run.folder / "defense.safetensors", fit.defense)
    facts = {
        "seconds": fit.seconds,
        "steps": fit.steps,
        "forwards": fit.forwards * recipe.training.epochs,
        "backwards": fit.backwards * recipe.training.epochs,
        "train_images": len(data.train),
        **provenance(fit.device),
    }
    atomic_write(run.folder / "training.json", to_json(facts))


def load_model(run: Run, data: Data) -> nn.Module:
    """Return the trained classifier of a run, in evaluation mode, on the CPU.

    Raises:
        RunError: If the run has not ended, or its weights are damaged.
    """
    model = build_model(run.recipe, data, run.seed)
    _load_tensors(run, "model.safetensors", model)
    return model.eval()


def load_defense(run: Run, data: Data) -> Defense[Any]:
    """Return the defense of a run with what it learned, on the CPU."""
    defense = defenses.build(run.defense, run.recipe, channels=data.channels, seed=run.seed)
    _load_tensors(run, "defense.safetensors", defense)
    return defense


def evaluate_run(
    run: Run,
    data: Data,
    *,
    recipe: Recipe | None = None,
    split: str = "test",
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Outcomes:
    """Attack the model of a run and keep the outcomes; what was evaluated so before is read back.

    Args:
        run: A run that has been trained.
        data: Its data.
        recipe: Whose evaluation settings and radii to use; None takes those of the run.
        split: "test" or "validation".
        seed: Of the attacks' random starts.
        report: Receives a line when an attack is done.
    """
    recipe = recipe or run.recipe
    images = data.test if split == "test" else data.validation
    if images is None:
        raise InputError("split: the run held out no validation images; set data.validation.")
    config = recipe.evaluation
    folder = (
        run.folder / "evaluation" / (config.suite if split == "test" else f"{config.suite}-{split}")
    )
    manifest = {
        "run": {"defense": run.defense, "training_seed": run.seed, "name": run.recipe.name},
        "split": split,
        "data": data.name,
        "weights": _digest(run),
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
    }
    if (folder / "outcomes.json").is_file():
        known = evaluation.load(folder)
        limit = min(config.limit or len(images), len(images))
        if (len(known), known.manifest.get("seed")) == (limit, seed) and all(
            known.manifest.get(key) == value for key, value in manifest.items()
        ):
            report("already evaluated with these settings")
            return known
    device = training.choose_device(recipe.training.device)
    outcomes = evaluation.evaluate_suite(
        load_model(run, data).to(device),
        images,
        evaluation.build_suite(config.suite, threats_from(recipe.threats), config.attack),
        batch_size=config.batch_size,
        limit=config.limit,
        seed=seed,
        device=device,
        manifest=manifest,
        report=report,
    )
    evaluation.save(outcomes, folder)
    return outcomes


def result_of(run: Run, suite: str | None = None) -> RunResult:
    """Return what the tables need to know of a run.

    Raises:
        RunError: If it has not been trained or not been evaluated with the suite.
    """
    if not run.trained:
        raise RunError(f"{run.folder} has not finished training; run `multirobust train` again.")
    suite = suite or run.recipe.evaluation.suite
    folder = run.folder / "evaluation" / suite
    if not (folder / "outcomes.json").is_file():
        raise RunError(
            f"{run.folder} has no outcomes of the suite {suite!r}; run `multirobust evaluate {run.folder}`."
        )
    facts = read_json(run.folder / "training.json")
    return RunResult(
        run.defense,
        run.seed,
        evaluation.load(folder),
        training_seconds=facts["seconds"],
        forwards=facts["forwards"],
        backwards=facts["backwards"],
        device=facts["device"],
    )


def _save_tensors(path: Path, module: nn.Module) -> None:
    from safetensors.torch import save

    state = module.state_dict()
    tensors = {
        name: value.cpu().contiguous() for name, value in state.items() if hasattr(value, "cpu")
    }
    atomic_write(path, save(tensors))


def _load_tensors(run: Run, name: str, module: nn.Module) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = run.folder / name
    if not path.is_file():
        raise RunError(f"{run.folder} has no {name}: it has not finished training.")
    try:
        missing, foreign = module.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise RunError(
            f"{path} is damaged or of another model: {error}. Train the run again."
        ) from error
    missing = [key for key in missing if not key.endswith("_extra_state")]
    if missing or foreign:
        raise RunError(f"{path} is of another model: missing {missing}, not expected {foreign}.")


def _digest(run: Run) -> str:
    path = run.folder / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
