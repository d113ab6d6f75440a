"""Training and evaluating runs, with everything kept in their folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from multirobust import training
from multirobust.attacks import attacks_from, threats_from
from multirobust.config import Recipe
from multirobust.data import Data
from multirobust.defenses import batch_norm_during
from multirobust.errors import InputError
from multirobust.evaluation import EvaluationDisplay, Outcomes, Shard
from multirobust.evaluation.evaluate import refuse_findings
from multirobust.experiment.attacking import Elsewhere, RunSubject, evaluate_and_save, images_of
from multirobust.experiment.building import (
    build_defense,
    build_model,
    load_model,
    weights_digest,
)
from multirobust.experiment.evaluated import images_kept, known_outcomes
from multirobust.experiment.keeping import keep_training
from multirobust.experiment.runs import (
    Run,
    identity,
    open_run,
    stored_recipe,
)
from multirobust.experiment.unlabeled import check_unlabeled, with_unlabeled
from multirobust.ranks import agreed, rank_0_first
from multirobust.training import ProgressDisplay

__all__ = ["evaluate_run", "evaluation_name", "train_run"]


def train_run(
    run: Run,
    data: Data,
    *,
    display: ProgressDisplay | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train a run, from where it stands; nothing happens if it has ended.

    Raises:
        InputError: If the weights to start from cannot be read, or do not fit the model.
        RunError: If the folder holds another run or cannot be written.
        Interrupted: If `stop` said so; the run is saved.
    """
    with rank_0_first():
        open_run(run)
    if agreed(run.trained):
        return
    recipe, data = run.recipe, with_unlabeled(data, run.recipe.data)
    check_unlabeled(run.defense, data)
    training.fit(
        build_model(recipe, data, run.seed),
        data,
        build_defense(run, data),
        recipe.training,
        seed=run.seed,
        batch_norm=batch_norm_during(run.defense, recipe),
        folder=run.folder,
        identity=identity(recipe, run.defense, run.seed),
        defaults=identity(Recipe(), run.defense, run.seed),
        held_out_attacks=attacks_from(recipe.attack, threats_from(recipe.threats)),
        display=display,
        title=run.name,
        stop=stop,
        keep=lambda fit: keep_training(run, fit, data),
    )
    with rank_0_first():
        pass


def evaluate_run(
    run: Run,
    data: Data,
    *,
    recipe: Recipe | None = None,
    split: str = "test",
    seed: int = 0,
    shard: Shard | None = None,
    save_images: bool = False,
    strict: bool = False,
    report: Callable[[str], None] = lambda line: None,
    display: EvaluationDisplay | None = None,
    elsewhere: Elsewhere | None = None,
) -> Outcomes:
    """Attack the model of a run and keep the outcomes; what was evaluated so before is read back.

    The evaluation that the run's `recipe.toml` asks for lies in `evaluation/<suite>`. Any other one
    (fewer images, other radii, the validation split, a shard) gets a folder of its own beside it,
    named by `evaluation_name`, so that none takes the place of another. Killed at any point, the
    same call goes on where it stopped.

    Args:
        run: A run that has been trained.
        data: Its data.
        recipe: Whose evaluation settings and radii to use; None takes those of the run.
        split: "test" or "validation".
        seed: Of the attacks' random starts.
        shard: Attack only a part of the images; see `evaluation.merge`.
        save_images: Also keep the adversarial images that broke the model, in `adversarial/`.
        strict: Make every finding of the audit an error.
        report: Receives a line for each finding and when an attack is done.
        display: Shows progress.
        elsewhere: Does parts of the evaluation in other processes, before this one goes on.

    Raises:
        InputError: If the recipe changes what the run was trained with, or there are no images, or,
            with strict, the audit finds anything.
        RunError: If the run has not been trained or its folder cannot be written.
    """
    recipe = recipe or run.recipe
    _check_changes(run, recipe)
    images, shard = images_of(data, split), shard or Shard()
    settings = _settings(recipe, split, seed, shard)
    name = evaluation_name(run, settings)
    folder = run.folder / "evaluation" / name
    manifest = {
        "run": {"defense": run.defense, "training_seed": run.seed, "name": run.recipe.name},
        "data": data.name,
        "weights": weights_digest(run),
        "evaluation": settings,
        "recipe": run.recipe.model_dump(mode="json", exclude_none=True),
    }
    count = min(recipe.evaluation.limit or len(images), len(images))
    known = known_outcomes(folder, manifest, images.first(count), report)
    if known is None or (save_images and not images_kept(folder, known)):
        device = training.choose_device(recipe.training.device)
        known = evaluate_and_save(
            load_model(run, data).to(device),
            images,
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
            subject=_subject(run, recipe, split),
        )
    elif strict:
        refuse_findings(known.manifest.get("audit") or [])
    if shard.of > 1:
        report(f"kept as {name!r}; `multirobust merge` joins the shards when all are done")
    elif name != recipe.evaluation.suite:
        report(f"kept as {name!r}; compare and report show it with --suite {name}")
    return known


def evaluation_name(
    run: Run, settings: dict[str, Any] | None = None, *, split: str = "test"
) -> str:
    """Return the folder of an evaluation: the suite, and how it departs from the run's own.

    Args:
        run: The run; its `recipe.toml` says which evaluation is its own.
        settings: What decides the outcomes; None takes what `run.recipe` asks for.
        split: Without settings, of which images: "test" or "validation".
    """
    settings = settings or _settings(run.recipe, split, 0)
    whole = {key: value for key, value in settings.items() if key != "shard"}
    parts = [settings["suite"]]
    if settings["split"] != "test":
        parts.append(settings["split"])
    if whole != _settings(stored_recipe(run.folder), settings["split"], 0):
        parts.append(hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8])
    if "shard" in settings:
        parts.append(settings["shard"].replace("/", "of"))
    return "-".join(parts)


def _subject(run: Run, recipe: Recipe, split: str) -> RunSubject:
    """Return how another process gets the model of a run and its images."""
    folder, weights = run.folder.resolve(), weights_digest(run)
    return RunSubject(folder=folder, recipe=recipe, split=split, weights=weights)


def _check_changes(run: Run, recipe: Recipe) -> None:
    """A model is evaluated by other rules at will, but stays what it was trained as."""
    ours = identity(run.recipe, run.defense, run.seed)
    theirs = identity(recipe, run.defense, run.seed)
    changed = [n for n in ours if ours[n] != theirs[n] and not n.startswith("threats.")]
    changed += [n for n in ("defenses", "seeds") if getattr(run.recipe, n) != getattr(recipe, n)]
    if run.recipe.training.init_from != recipe.training.init_from:
        changed.append("training.init_from")
    if changed:
        raise InputError(
            f"{', '.join(changed)}: an evaluation may change evaluation.*, threats.*, data.folder, "
            "data.test_limit and training.device only; the rest decided how "
            f"{run.folder} was trained. For evaluation attacks, write evaluation.attack."
        )


def _settings(recipe: Recipe, split: str, seed: int, shard: Shard | None = None) -> dict[str, Any]:
    """What decides the outcomes of a given model on a given data set, as plain JSON values."""
    threats = threats_from(recipe.threats)
    part = {"shard": str(shard)} if shard and shard.of > 1 else {}
    return part | {
        **recipe.evaluation.model_dump(mode="json"),
        "threats": {norm: repr(threat) for norm, threat in threats.items()},
        "split": split,
        "test_limit": recipe.data.test_limit if split == "test" else None,
        "seed": seed,
    }
