"""Weights to start from: fine-tuning a model that exists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from multirobust.data import Data
from multirobust.errors import InputError
from multirobust.models.weights import PREFIXES, load_weights, read_weights, state_digest

__all__ = ["Start", "read_start"]

WEIGHTS, MARKER, TRAINING = "model.safetensors", "run.json", "training.json"
SAID = {
    "defense": "defense",
    "seed": "seed",
    "data.name": "data",
    "data.validation": "validation",
    "training.epochs": "epochs",
    "training.passes": "passes",
}
COST = ("seconds", "forwards", "backwards", "train_images")


@final
@dataclass(frozen=True)
class Start:
    """Weights that a training begins with, and where they come from.

    Args:
        path: As it was given.
        state: Names and tensors; wrappers' prefixes before all names are gone.
        digest: SHA-256 of names, dtypes, shapes and bytes. It decides which weights these are, not
            the path.
        origin: Of a run of ours: its defense, seed, data, held-out images and epochs (or the
            passes that ended it), what its training cost, and the "init_from" of its own, if it
            had one. Empty for a file of weights.
    """

    path: str
    state: Mapping[str, Tensor]
    digest: str
    origin: Mapping[str, Any] = field(default_factory=dict)

    def load_into(self, model: nn.Module) -> None:
        """Put the weights and the statistics of BatchNorm and normalization into a model.

        Raises:
            InputError: If the model has other weights than these, in name or shape.
        """
        try:
            load_weights(model, self.state, source=self.path)
        except InputError as error:
            raise InputError(
                f"training.init_from: {error} Fine-tuning needs the same architecture and as many "
                "classes and channels."
            ) from error

    def check_unseen(self, data: Data) -> None:
        """Make sure that no training before this one saw the images that are held out now.

        Of a file of weights nothing is known, and nothing is checked.

        Raises:
            InputError: If a run that led here trained on the same data and held out fewer images,
                or of another number.
        """
        held_out = 0 if data.validation is None else len(data.validation)
        pool, origin = len(data.train) + held_out, self.origin
        while origin:
            theirs, seen = origin.get("validation", 0), origin.get("train_images", 0)
            if origin.get("data") == data.name and (theirs < held_out or seen + theirs != pool):
                raise InputError(
                    f"training.init_from: the {held_out} held-out images must be new to the model, "
                    f"got {self.path!r}, for which {seen} images were trained on and {theirs} held "
                    "out; train it with the same data.validation and data.train_limit, or set "
                    "training.select to 'last'."
                )
            origin = origin.get("init_from", {})

    def facts(self) -> dict[str, Any]:
        """Return what `training.json` says of it."""
        return {"path": self.path, "digest": self.digest, **self.origin}


def read_start(path: str | Path) -> Start:
    """Read the weights of a finished run or of a file; nothing in them is executed.

    Args:
        path: A run folder, or a file for `models.weights.read_weights`.

    Raises:
        InputError: If there is nothing, the run has not ended, or the file is damaged, needs code
            to be loaded, or holds no state dict.
    """
    place = Path(path).expanduser()
    origin = _origin(place) if place.is_dir() else {}
    file = place / WEIGHTS if place.is_dir() else place
    try:
        state = _bare(read_weights(file))
    except InputError as error:
        raise InputError(f"training.init_from: {error}") from error
    return Start(str(path), state, state_digest(state), origin)


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers put before all names, so that it does not count for the digest."""
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _bare({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def _origin(folder: Path) -> dict[str, Any]:
    """Return what a run folder says of its training.

    Raises:
        InputError: If it holds no run, or one that has not ended, or is damaged.
    """
    if not (folder / MARKER).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{MARKER}"))
        way = f"name one of the runs in it: {', '.join(inside)}" if inside else "name a run folder"
        raise InputError(
            f"training.init_from: must be a run folder or a file of weights, got {str(folder)!r}, "
            f"a folder without {MARKER}; {way}, or a .safetensors or .pt file."
        )
    lacking = [name for name in (WEIGHTS, TRAINING) if not (folder / name).is_file()]
    if lacking:
        raise InputError(
            f"training.init_from: must be a run that has ended, got {str(folder)!r}, which has no "
            f"{' and no '.join(lacking)}; run the command that trained it again."
        )
    made, cost = _read(folder / MARKER).get("identity"), _read(folder / TRAINING)
    if not isinstance(made, dict):
        raise _damaged(folder / MARKER, "it does not say which run it is")
    facts = {name: made[field] for field, name in SAID.items() if made.get(field) is not None}
    if "passes" in facts:
        facts.pop("epochs", None)
    facts |= {name: cost[name] for name in COST if name in cost}
    return facts | ({"init_from": cost["init_from"]} if "init_from" in cost else {})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds a {type(content).__name__}")
    return content


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"training.init_from: {path} is damaged: {why}. Restore it, or name the weights in its "
        f"folder themselves, {WEIGHTS}."
    )
