"""The one training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from multirobust.attacks import Attack
from multirobust.config import TrainingConfig
from multirobust.data import Data
from multirobust.defenses import Defense
from multirobust.errors import InputError
from multirobust.evaluation import check_model
from multirobust.evaluation.runner import out_of_memory
from multirobust.processes import launched
from multirobust.ranks import ranks
from multirobust.training.job import Job
from multirobust.training.loop import Loop
from multirobust.training.memory import memory_told
from multirobust.training.progress import ProgressDisplay, Silent
from multirobust.training.run_folder import exclusive, plain
from multirobust.training.selection import Selected
from multirobust.training.starting import Start, read_start
from multirobust.training.team import losing_a_rank

__all__ = ["Fit", "fit"]


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Args:
        model: The classifier, in evaluation mode, on the training device.
        defense: The defense with what it learned.
        seconds: Time in the loop, summed over resumptions.
        steps: Steps taken.
        forwards: Images passed forward, per clean image seen.
        backwards: Images passed backward, per clean image seen.
        seen: Clean images seen, counted each time; pseudo-labeled ones among them.
        device: Where it was trained, of this process.
        selected: The epoch that was selected, and the accuracies that decided it, if any did.
        start: What the weights that it began with were, if they were given.
        devices: How many processes trained it, in the end.
    """

    model: nn.Module
    defense: Defense[Any]
    seconds: float
    steps: int
    forwards: float
    backwards: float
    seen: int
    device: str
    selected: Selected | None = None
    start: Start | None = None
    devices: int = 1


def fit(
    model: nn.Module,
    data: Data,
    defense: Defense[Any],
    config: TrainingConfig,
    *,
    seed: int = 0,
    batch_norm: Literal["batch", "running"] = "batch",
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    held_out_attacks: Mapping[str, Attack] | None = None,
    display: ProgressDisplay | None = None,
    title: str = "training",
    stop: Callable[[], bool] = lambda: False,
    keep: Callable[[Fit], None] = lambda fit: None,
) -> Fit:
    """Train a model, from its newest checkpoint if the folder has one.

    The same arguments give the same bits on the same machine, interrupted or not. Where several
    processes were started together (`multirobust train --devices`, torchrun, SLURM), each calls
    this with the same arguments; they train one model, and rank 0 alone writes.

    Args:
        model: The classifier; it is trained in place.
        data: Its training split is used.
        defense: What is trained against; its state is part of the checkpoint.
        config: Epochs or passes, optimizer, schedule, device, and what else the loop does.
        seed: Of the order, the augmentation and all noise.
        batch_norm: Statistics that attacks use, see `attacks.attacking`.
        folder: Where checkpoints and metrics go, made if missing; None keeps nothing.
        identity: What else a checkpoint must have been made with to be continued, besides seed,
            config, batch_norm, and the name and size of the training data; plain JSON values.
        defaults: What fields of the identity stand for in checkpoints that were written before
            there were these fields.
        held_out_attacks: By name, for `training.select` "union"; used on `data.validation`.
        display: Where progress is shown.
        title: How progress names the run.
        stop: Asked after every step; when true, the run is saved and `Interrupted` is raised.
        keep: Is given the result while no other process may use the folder.

    Raises:
        InputError: If there are fewer than two images, the model does not fit them, the device is
            not there, the identity holds other than plain values, `training.init_from` cannot be
            used or has seen the images to select by, or there are none to select by.
        CheckpointError: If the checkpoint is damaged or of another identity.
        RunError: If the folder cannot be written, or another process trains in it.
        TrainingError: If the loss or a weight becomes NaN or infinite, memory runs out, another
            process is lost, or the processes come apart; the last good checkpoint stays.
        Interrupted: If `stop` said so.
    """
    start = None if config.init_from is None else read_start(config.init_from)
    if start:
        start.load_into(model)
        if config.select == "union":
            start.check_unseen(data)
    _check(model, data)
    if config.fold_batch_norm and batch_norm != "running":
        raise InputError(
            "training.fold_batch_norm: running statistics can be folded, those of a batch cannot, "
            f"got batch_norm {batch_norm!r}; pass batch_norm='running', or drop it."
        )
    launch = launched()
    writer = launch is None or launch.rank == 0
    job = Job(
        *(model, data, defense, config, seed, batch_norm, folder),
        given=plain(identity or {}),
        defaults=plain(defaults or {}),
        attacks=held_out_attacks or {},
        start=start.digest if start else None,
        writes=writer,
    )
    with (
        losing_a_rank(),
        exclusive(folder if writer else None),
        memory_told(config.batch_size, folder),
    ):
        loop = Loop(job)
        loop.run(display if display and writer else Silent(), title, stop)
        loop.finish()
        result = _result(loop, start)
        if writer:
            keep(result)
    return result


def _result(loop: Loop, start: Start | None) -> Fit:
    forwards, backwards = loop.course.per_image()
    return Fit(
        model=loop.model.eval(),
        defense=loop.defense,
        seconds=loop.seconds,
        steps=loop.course.step,
        forwards=forwards,
        backwards=backwards,
        seen=loop.course.seen,
        device=str(loop.runtime.device),
        selected=loop.selection.result() if loop.selection else None,
        start=start,
        devices=ranks(),
    )


def _check(model: nn.Module, data: Data) -> None:
    if len(data.train) < 2:
        raise InputError(
            f"data: training needs at least 2 images, since BatchNorm needs a batch, got "
            f"{len(data.train)}."
        )
    try:
        check_model(model.eval(), data.train)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        shape = tuple(data.train.images.shape[1:])
        raise InputError(
            f"model cannot take images of shape {shape} of the data set {data.name!r}: {error}. "
            "Build it with the channels and classes of the data."
        ) from error
