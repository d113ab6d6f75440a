"""One small training, and what it leaves: shared by the tests of this folder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multirobust import defenses, models
from multirobust.attacks import Attack, attacks_from, threats_from
from multirobust.config import Recipe
from multirobust.data import Data, digits
from multirobust.training import Fit, fit, load_checkpoint

STEPS_AN_EPOCH = 3


@functools.cache
def small_digits() -> Data:
    """70 digits: batches of 32, 32 and 6."""
    return digits(train_limit=70, test_limit=20)


@functools.cache
def held_out_digits() -> Data:
    """70 digits to train on, and 12 held out of them."""
    return digits(train_limit=82, test_limit=20, validation=12)


def recipe(**training: Any) -> Recipe:
    """Three epochs of three steps, with short attacks."""
    short = {"steps": 2, "step_size": 0.1}
    return Recipe.model_validate(
        {
            "threats": {"preset": "digits"},
            "attack": {"linf": short, "l2": short, "l1": short},
            "defense": {"msd_steps": 2},
            "training": {"epochs": 3, "batch_size": 32, "log_steps": 2, "device": "cpu"} | training,
        }
    )


def train(
    defense: Any = "standard", folder: Path | None = None, *, options: Any = None, **training: Any
) -> Fit:
    """Train on the small digits; `options` are keywords of `fit`."""
    whole = recipe(**training)
    data = small_digits()
    model = small_cnn()
    if isinstance(defense, str):
        defense = defenses.build(defense, whole, channels=1)
    keywords = {"data": data, "model": model} | (options or {})
    return fit(defense=defense, config=whole.training, folder=folder, **keywords)


def small_cnn(seed: int = 0) -> nn.Module:
    """The model of these trainings, with its first weights."""
    return models.build("small_cnn", classes=10, channels=1, widths=(8, 16), seed=seed)


def all_options(start: Path) -> dict[str, Any]:
    """Keywords of `train` that turn on everything that the loop can do.

    Args:
        start: Where the weights to start from lie; they are written if they are not there.
    """
    if not start.exists():
        torch.save(small_cnn(seed=5).state_dict(), start)
    return {
        "ema": 0.9,
        "select": "union",
        "gradient_clip": 0.5,
        "label_smoothing": 0.1,
        "init_from": str(start),
        "options": {"data": held_out_digits(), "held_out_attacks": short_attacks()},
    }


def short_attacks() -> dict[str, Attack]:
    """The training attacks of `recipe`, by norm."""
    whole = recipe()
    return dict(attacks_from(whole.attack, threats_from(whole.threats)))


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Flatten a state dict; tensors become their bytes."""
    if isinstance(tree, torch.Tensor):
        return {path: (tree.dtype, tuple(tree.shape), tree.cpu().numpy().tobytes())}
    if isinstance(tree, (dict, list, tuple)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, value in items for k, v in leaves(value, f"{path}/{name}").items()}
    return {path: tree}


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that the seed determines in a run folder, as bytes."""
    content = load_checkpoint(folder)
    assert content is not None
    content.pop("seconds")
    content.get("selection", {}).pop("seconds", None)
    return leaves(content) | {"metrics.jsonl": (folder / "metrics.jsonl").read_bytes()}


class StopAt:
    """A `stop` that says so after some steps of this process."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0
