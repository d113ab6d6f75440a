"""What stays of a training that has ended."""

from __future__ import annotations

from typing import Any

from multirobust.data import Data
from multirobust.experiment.building import save_weights
from multirobust.experiment.runs import TRAINING, Run, to_json
from multirobust.files import atomic_write
from multirobust.provenance import provenance
from multirobust.training import Fit

__all__ = ["keep_training"]


def keep_training(run: Run, fit: Fit, data: Data) -> None:
    """Write the weights into the run folder, then `training.json`, which says what they cost.

    Raises:
        RunError: If a file cannot be written.
    """
    save_weights(run, fit.model, fit.defense)
    # For each labeled image, so that pseudo-labeled ones beside them are part of the cost.
    times = fit.seen / len(data.train)
    facts = {
        "seconds": fit.seconds,
        "steps": fit.steps,
        "forwards": fit.forwards * times,
        "backwards": fit.backwards * times,
        "train_images": len(data.train),
        **({"devices": fit.devices} if fit.devices > 1 else {}),
        **_chosen(fit, len(data.train)),
        **provenance(fit.device),
    }
    atomic_write(run.folder / TRAINING, to_json(facts))


def _chosen(fit: Fit, images: int) -> dict[str, Any]:
    """What `training.json` says of the weights it began with, and of those it ended with."""
    facts: dict[str, Any] = {"init_from": fit.start.facts()} if fit.start else {}
    if fit.selected is None:
        return facts
    cost = {
        "images": fit.selected.images,
        "seconds": fit.selected.seconds,
        "forwards": fit.selected.forwards / images,
        "backwards": fit.selected.backwards / images,
    }
    history = list(fit.selected.history)
    return facts | {"selected_epoch": fit.selected.epoch, "held_out": history, "selection": cost}
