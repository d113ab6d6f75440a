"""Training and evaluating from Python, with any model and any data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from multirobust import defenses, evaluation, training
from multirobust.attacks import attacks_from, threats_from
from multirobust.config import Recipe, load_recipe
from multirobust.data import Data, Split
from multirobust.defenses import Defense
from multirobust.errors import InputError
from multirobust.evaluation import Outcomes, Suite
from multirobust.experiment.runs import identity, make_folder
from multirobust.experiment.unlabeled import check_unlabeled
from multirobust.training import Fit, ProgressDisplay

__all__ = ["evaluate", "recipe_for", "train"]


def train(
    model: nn.Module,
    data: Data,
    defense: str | Defense[Any] = "mng_ac",
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    display: ProgressDisplay | None = None,
) -> Fit:
    """Train a classifier against several attacks.

    Args:
        model: Any classifier from images in [0, 1] to logits; trained in place.
        data: What to train on.
        defense: A name of `multirobust list defenses`, or a defense.
        recipe: Radii, attacks, hyper-parameters, schedule; None takes the shipped one of the data.
        seed: Of everything random.
        folder: Where to keep checkpoints and metrics, and to resume from; None keeps nothing.
        display: Where progress is shown; None shows nothing.

    Returns:
        The trained model with time and passes. See `training.Fit`.

    Raises:
        InputError: If an argument is of another type, the model does not fit the data, or the
            defense needs unlabeled images (`Data.unlabeled`) and there are none.
        CheckpointError: If the folder holds the checkpoint of another training.
        RunError: If the folder cannot be written.
        TrainingError: If the loss becomes NaN or infinite.
    """
    _check_type("model", model, nn.Module, "wrap a function in a module")
    _check_type("data", data, Data, "load one with multirobust.data.digits(), or make a Data")
    _check_type("defense", defense, (str, Defense), "give a name of `multirobust list defenses`")
    recipe = _checked_recipe(recipe, data.name)
    name = defense if isinstance(defense, str) else type(defense).__name__
    check_unlabeled(name, data)
    if isinstance(defense, str):
        defense = defenses.build(defense, recipe, channels=data.channels, seed=seed)
    if folder is not None:
        folder = Path(folder)
        make_folder(folder)
    return training.fit(
        model,
        data,
        defense,
        recipe.training,
        seed=seed,
        batch_norm=defenses.batch_norm_during(name, recipe),
        folder=folder,
        identity=identity(recipe, name, seed),
        defaults=identity(Recipe(), name, seed),
        held_out_attacks=attacks_from(recipe.attack, threats_from(recipe.threats)),
        display=display,
        title=name,
    )


def evaluate(
    model: nn.Module,
    data: Data | Split,
    suite: str | Suite = "quick",
    *,
    recipe: Recipe | None = None,
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Outcomes:
    """Attack a classifier with a suite.

    Args:
        model: Any classifier from images in [0, 1] to logits, in evaluation mode.
        data: A split, or a data set, of which the test split is used.
        suite: A name of `multirobust list suites`, or a suite.
        recipe: Radii, steps, batch size; None takes the shipped one of the data.
        limit: Use only the first images.
        seed: Of the attacks' random starts.
        options: Others of `evaluation.evaluate_suite`, such as mode="cascade", partial=Path("x"),
            strict=True or report=print.

    Returns:
        What happened to every image; see `evaluation.Outcomes`.

    Raises:
        InputError: If an argument is of another type, the limit is below 1, or the model is not a
            classifier of these images (see `evaluation.check_classifier`).
    """
    _check_type("data", data, (Data, Split), "make a split with Split.from_arrays(images, labels)")
    _check_type("suite", suite, (str, Suite), "give a name of `multirobust list suites`")
    split = data.test if isinstance(data, Data) else data
    recipe = _checked_recipe(recipe, split.source)
    if isinstance(suite, str):
        threats = threats_from(recipe.threats)
        suite = evaluation.build_suite(suite, threats, recipe.evaluation, split)
    return evaluation.evaluate_suite(
        model,
        split,
        suite,
        mode=None if recipe.evaluation.mode == "auto" else recipe.evaluation.mode,
        batch_size=recipe.evaluation.batch_size,
        block_size=recipe.evaluation.block_size,
        limit=recipe.evaluation.limit if limit is None else limit,
        seed=seed,
        **options,
    )


def recipe_for(name: str) -> Recipe:
    """Return the shipped recipe of a data set, for calls that bring data but no recipe."""
    try:
        return load_recipe(name)
    except InputError:
        raise InputError(
            f"data: no recipe is shipped for {name or 'a split of its own'!r}, so radii and steps "
            "are unknown; pass recipe=..., such as recipe=multirobust.load_recipe('cifar10')."
        ) from None


def _checked_recipe(recipe: Recipe | None, data: str) -> Recipe:
    hint = "load one with multirobust.load_recipe('digits')"
    _check_type("recipe", recipe, (Recipe, type(None)), hint)
    return recipe or recipe_for(data)


def _check_type(name: str, value: object, kinds: type | tuple[type, ...], way_out: str) -> None:
    if not isinstance(value, kinds):
        known = kinds if isinstance(kinds, tuple) else (kinds,)
        wanted = " or ".join(kind.__name__ for kind in known if kind is not type(None))
        raise InputError(f"{name} must be a {wanted}, got {type(value).__name__}; {way_out}.")
