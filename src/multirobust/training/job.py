"""What one training was asked to do, and what a checkpoint must agree with to be continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from multirobust.attacks import Attack
from multirobust.config import TrainingConfig
from multirobust.config.sections import merged
from multirobust.data import Data, Loader
from multirobust.defenses import Defense
from multirobust.errors import InputError
from multirobust.training.run_folder import difference, plain

__all__ = ["Job"]

NOT_IDENTITY = {
    "accumulate",
    "checkpoint_seconds",
    "device",
    "devices",
    "init_from",
    "replay",
}


@dataclass(frozen=True)
class Job:
    """What `fit` was asked to do.

    Args:
        given: Of the identity, what the caller adds.
        defaults: Values of fields that `given` has and older checkpoints lack.
        attacks: On the held-out images, by name.
        start: Digest of the weights that the model was given before, if it was.
        writes: Whether this process is the one that writes into the folder.
    """

    model: nn.Module
    data: Data
    defense: Defense[Any]
    config: TrainingConfig
    seed: int
    batch_norm: Literal["batch", "running"]
    folder: Path | None
    given: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    attacks: Mapping[str, Attack] = field(default_factory=dict)
    start: str | None = None
    writes: bool = True

    def loader(self, device: torch.device) -> Loader:
        """Return the batches to train on, made on a device."""
        data = self.data
        return Loader(
            data.train,
            batch_size=self.config.batch_size,
            seed=self.seed,
            augmentation=data.augmentation,
            device=device,
            unlabeled=data.unlabeled,
            placement=data.placement,
        )

    def identity(self) -> dict[str, Any]:
        """Everything that a checkpoint must agree with."""
        bits = _bits(self.config) | ({"init_from": self.start} if self.start else {})
        data: dict[str, Any] = {"name": self.data.name, "images": len(self.data.train)}
        more = self.data.unlabeled
        if more is not None:
            data["unlabeled"] = {"digest": more.digest, "share": more.share, "epoch": more.epoch}
        facts = {"seed": self.seed, "batch_norm": self.batch_norm, "data": data, "training": bits}
        if self.config.select == "union" and self.data.validation is not None:
            attacks = {name: repr(attack) for name, attack in self.attacks.items()}
            facts["held_out"] = {"images": len(self.data.validation), "attacks": attacks}
        return {**facts, **({"run": self.given} if self.given else {})}

    def difference(self, made_with: Mapping[str, Any]) -> str:
        """Name each field in which a checkpoint's identity differs; empty if it may be continued.

        Fields that came with a later version have there what is the default today.
        """
        try:
            made_with = plain({**made_with})
        except (InputError, TypeError):
            return "which it does not say in plain values"
        defaults = {"training": _bits(TrainingConfig()), "run": self.defaults}
        there = {
            name: merged(defaults[name], value)
            if name in defaults and isinstance(value, Mapping)
            else value
            for name, value in made_with.items()
        }
        ours = self.identity()
        return "" if there == ours else difference(there, ours)


def _bits(config: TrainingConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=NOT_IDENTITY)
