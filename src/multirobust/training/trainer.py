"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multirobust.attacks import PassMeter, attacking
from multirobust.config import TrainingConfig
from multirobust.data import Batch, Data, Loader
from multirobust.defenses import Defense, Loss
from multirobust.errors import CheckpointError, InputError, Interrupted, TrainingError
from multirobust.training.checkpoint import load_checkpoint, save_checkpoint
from multirobust.training.metrics import MetricsLog
from multirobust.training.progress import ProgressDisplay, Silent, Status
from multirobust.training.runtime import Runtime
from multirobust.training.schedule import Triangular

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
        device: Where it was trained.
    """

    model: nn.Module
    defense: Defense[Any]
    seconds: float
    steps: int
    forwards: float
    backwards: float
    device: str


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
    display: ProgressDisplay | None = None,
    title: str = "training",
    stop: Callable[[], bool] = lambda: False,
) -> Fit:
    """Train a model, from its newest checkpoint if the folder has one.

    The same arguments give the same bits on the same machine, interrupted or not.

    Args:
        model: The classifier; it is trained in place.
        data: Its training split is used.
        defense: What is trained against; its state is part of the checkpoint.
        config: Epochs, optimizer, schedule, device.
        seed: Of the order, the augmentation and all noise.
        batch_norm: Statistics that attacks use, see `attacks.attacking`.
        folder: Where checkpoints and metrics go; None keeps nothing.
        identity: What a checkpoint must have been made with to be continued.
        display: Where progress is shown.
        title: How progress names the run.
        stop: Asked after every step; when true, the run is saved and `Interrupted` is raised.

    Raises:
        InputError: If the data are too few for a batch.
        CheckpointError: If the checkpoint is damaged or of another identity.
        TrainingError: If the loss becomes NaN or infinite; the last good checkpoint stays.
        Interrupted: If `stop` said so.
    """
    if len(data.train) < 2:
        raise InputError(
            f"data: training needs at least 2 images, since BatchNorm needs a batch, got {len(data.train)}."
        )
    loop = _Loop(model, data, defense, config, seed, batch_norm, folder, dict(identity or {}))
    return loop.run(display or Silent(), title, stop)


class _Loop:
    """The state of one training, and how it moves."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        defense: Defense[Any],
        config: TrainingConfig,
        seed: int,
        batch_norm: Literal["batch", "running"],
        folder: Path | None,
        identity: dict[str, Any],
    ):
        self.config, self.seed, self.batch_norm = config, seed, batch_norm
        self.folder, self.identity = folder, identity
        self.runtime = Runtime(config.device, config.precision)
        self.model = model
        self.defense: Any = self.runtime.place(defense)
        optimizer = torch.optim.SGD(
            self.runtime.place(model).parameters(),
            lr=config.peak_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.wrapped, self.optimizer = self.runtime.set_up(model, optimizer)
        self.loader = Loader(
            data.train,
            batch_size=config.batch_size,
            seed=seed,
            augmentation=data.augmentation,
            device=self.runtime.device,
        )
        self.images = len(data.train)
        self.steps = config.epochs * len(self.loader)
        self.schedule = Triangular(self.steps, config.peak_lr, config.peak_at)
        self.meter = PassMeter(model)
        self.step, self.seen, self.seconds, self.lr = 0, 0, 0.0, 0.0
        self.sums: dict[str, Tensor] = {}
        self.since_log = 0
        self._resume()

    def run(self, display: ProgressDisplay, title: str, stop: Callable[[], bool]) -> Fit:
        """Take the remaining steps."""
        log = MetricsLog(self.folder, self.step) if self.folder else None
        display.start(title, self._status({}, 0.0, 0.0))
        ending = "stopped by an error"
        try:
            with self.meter:
                self._steps(log, display, stop)
            ending = f"trained in {self.seconds:.0f} s, {self._per_image()[1]:.1f} passes/image"
        except Interrupted:
            ending = "interrupted, saved"
            raise
        finally:
            if log:
                log.close()
            display.finish(ending)
        self.model.eval()
        forwards, backwards = self._per_image()
        device = str(self.runtime.device)
        return Fit(
            self.model, self.defense, self.seconds, self.step, forwards, backwards, device
        )

    def _steps(
        self, log: MetricsLog | None, display: ProgressDisplay, stop: Callable[[], bool]
    ) -> None:
        tick = saved = logged = time.monotonic()
        first, start = divmod(self.step, len(self.loader))
        for epoch in range(first, self.config.epochs):
            for batch in self.loader.epoch(epoch, start if epoch == first else 0):
                self._train_step(self.runtime.batch(batch))
                at_end = self.step % len(self.loader) == 0
                if self.since_log == self.config.log_steps or at_end:
                    terms = self._flush_terms()
                    now = time.monotonic()
                    self._report(log, display, terms, epoch, now - logged, self.since_log)
                    self.since_log, logged = 0, now
                now = time.monotonic()
                self.seconds, tick = self.seconds + now - tick, now
                stopping = stop() and self.step < self.steps
                if at_end or stopping or now - saved >= self.config.checkpoint_seconds:
                    self._save(log)
                    saved = time.monotonic()
                if stopping:
                    raise Interrupted(self._how_to_go_on())

    def _train_step(self, batch: Batch) -> None:
        """One step of any defense: craft, adapt, minimize."""
        model, defense, runtime = self.model, self.defense, self.runtime
        self.lr = self.schedule.apply(self.optimizer, self.step)
        generator = runtime.generator(self.seed, self.step)
        model.train()
        with runtime.autocast():
            with attacking(model, self.batch_norm):
                views = defense.craft(model, batch, generator=generator)
            views = defense.adapt(model, batch, views, lr=self.lr, generator=generator)
            loss: Loss = defense.loss(self.wrapped, batch, views)
        self.optimizer.zero_grad(set_to_none=True)
        runtime.backward(loss.total)
        self.optimizer.step()
        self._add_terms({"loss": loss.total.detach(), **loss.terms})
        self.step += 1
        self.seen += len(batch)
        self.since_log += 1

    def _add_terms(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            value = value.double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _flush_terms(self) -> dict[str, float]:
        """Return the means since the last log line; the one place that waits for the device."""
        means = {name: value.item() / self.since_log for name, value in self.sums.items()}
        self._check_finite(means)
        self.sums = {}
        return means

    def _check_finite(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                kept = f" The last good checkpoint stays in {self.folder}." if self.folder else ""
                raise TrainingError(
                    f"The training's {name!r} became {value} by step {self.step} of {self.steps} (lr "
                    f"{self.lr:.4g}).{kept} Lower training.peak_lr, or use precision '32-true'."
                )

    def _report(
        self,
        log: MetricsLog | None,
        display: ProgressDisplay,
        terms: dict[str, float],
        epoch: int,
        seconds: float,
        steps: int,
    ) -> None:
        rate = steps * self.images / len(self.loader) / max(seconds, 1e-9)
        left = (self.steps - self.step) * seconds / steps
        display.update(self._status(terms, rate, left))
        if log:
            forwards, backwards = self._per_image()
            metrics = {"epoch": epoch + 1, "lr": self.lr, **terms}
            metrics |= {"forwards": forwards, "backwards": backwards}
            log.write(self.step, metrics, {"seconds": self.seconds, "images_per_second": rate})

    def _status(self, terms: dict[str, float], rate: float, left: float) -> Status:
        epoch = min(self.step // len(self.loader) + 1, self.config.epochs)
        if self.step and self.step % len(self.loader) == 0:
            epoch = self.step // len(self.loader)
        return Status(
            step=self.step,
            steps=self.steps,
            epoch=epoch,
            epochs=self.config.epochs,
            lr=self.lr,
            images_per_second=rate,
            backwards=self._per_image()[1],
            seconds_left=left,
            terms=terms,
        )

    def _per_image(self) -> tuple[float, float]:
        seen = max(self.seen, 1)
        return self.meter.forwards / seen, self.meter.backwards / seen

    def _save(self, log: MetricsLog | None) -> None:
        self._check_finite({name: value.item() for name, value in self.sums.items()})
        finite = [value.isfinite().all() for value in self.model.state_dict().values()]
        if not torch.stack(finite).all():
            self._check_finite({"weights": math.nan})
        if self.folder is None:
            return
        if log:
            log.flush()
        save_checkpoint(
            self.folder,
            {
                "identity": self.identity,
                "step": self.step,
                "seen": self.seen,
                "seconds": self.seconds,
                "forwards": self.meter.forwards,
                "backwards": self.meter.backwards,
                "sums": self.sums,
                "since_log": self.since_log,
                "lr": self.lr,
                "model": self.model.state_dict(),
                "defense": self.defense.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def _resume(self) -> None:
        content = load_checkpoint(self.folder, self.runtime.device) if self.folder else None
        if content is None:
            return
        if content["identity"] != self.identity:
            raise CheckpointError(
                f"The checkpoint in {self.folder} was made with other settings "
                f"({_difference(content['identity'], self.identity)}); choose another --output, or "
                "the settings it was made with."
            )
        self.step, self.seen, self.seconds = content["step"], content["seen"], content["seconds"]
        self.meter.forwards, self.meter.backwards = content["forwards"], content["backwards"]
        self.sums, self.since_log, self.lr = content["sums"], content["since_log"], content["lr"]
        self.model.load_state_dict(content["model"])
        self.defense.load_state_dict(content["defense"])
        self.optimizer.load_state_dict(content["optimizer"])

    def _how_to_go_on(self) -> str:
        if self.folder is None:
            return f"Interrupted at step {self.step} of {self.steps}; without a folder nothing is kept."
        return (
            f"Interrupted at step {self.step} of {self.steps}; saved in {self.folder}. "
            "Run the same command again to go on."
        )


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    names = sorted(
        name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)
    )
    return ", ".join(f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here" for name in names)
