"""The state of one training, and how it moves: what `fit` drives."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor

from multirobust.data import Batch
from multirobust.defenses.restoring import load_optimizer
from multirobust.errors import CheckpointError, Interrupted, TrainingError
from multirobust.ranks import agreed
from multirobust.training.acceleration import Acceleration
from multirobust.training.averages import Averages
from multirobust.training.checkpoint import check_state, load_checkpoint, save_checkpoint
from multirobust.training.course import Course
from multirobust.training.descent import Descent
from multirobust.training.global_statistics import GlobalStatistics
from multirobust.training.job import Job
from multirobust.training.metrics import MetricsLog
from multirobust.training.progress import ProgressDisplay, Status
from multirobust.training.runtime import Runtime
from multirobust.training.schedule import schedule_of
from multirobust.training.selection import Selection
from multirobust.training.team import Share, Team
from multirobust.training.weights import WeightAverage

__all__ = ["Loop"]

_UNFIT = ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError


class Loop:
    """The state of one training, and how it moves."""

    def __init__(self, job: Job):
        config = job.config
        self.job = job
        self.model = job.model
        self.runtime = Runtime(
            config.device, config.precision, config.memory_format, devices=config.devices
        )
        self.defense: Any = self.runtime.place(job.defense)
        self.sgd = torch.optim.SGD(
            self.runtime.place(job.model).parameters(),
            lr=config.peak_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.wrapped, self.stepper = self.runtime.set_up(job.model, self.sgd)
        self.loader = job.loader(self.runtime.device)
        self.schedule = schedule_of(config)
        self.faster = Acceleration(job.model, self.defense, config, self.runtime)
        self.meter = self.faster.meter
        sizes = {"batches": len(self.loader), "images": len(job.data.train)}
        self.course = Course(config, **sizes, meter=self.meter)
        self.team = Team(job.model)
        self.statistics = GlobalStatistics(job.model, config.batch_statistics)
        self.descent = Descent(job, self.defense, self.wrapped, self.runtime, self.faster)
        self.averages = Averages()
        self.ema = WeightAverage(self.model, config.ema) if config.ema else None
        self.selection = None
        if config.select == "union":
            kept = self.model, job.data, job.attacks, config
            self.selection = Selection(*kept, self.runtime)
        self.seconds, self.lr = 0.0, 0.0
        self._resume()

    def run(self, display: ProgressDisplay, title: str, stop: Callable[[], bool]) -> None:
        """Take the remaining steps."""
        ending = "stopped by an error"
        display.start(title, self._status({}, 0.0, 0.0))
        try:
            if not self.course.over:
                reproducible = self.runtime.reproducible()
                with self._log() as log, self.meter, self.statistics, reproducible:
                    self._steps(log, display, stop)
            passes = self.course.per_image()[1]
            ending = f"trained in {self.seconds:.0f} s, {passes:.1f} passes/image"
        except Interrupted:
            ending = "interrupted, saved" if self.job.folder else "interrupted"
            raise
        finally:
            display.finish(ending)

    def _log(self) -> contextlib.AbstractContextManager[MetricsLog | None]:
        if self.job.folder is None or not self.job.writes:
            return contextlib.nullcontext()
        return contextlib.closing(MetricsLog(self.job.folder, self.course.step))

    def _steps(
        self, log: MetricsLog | None, display: ProgressDisplay, stop: Callable[[], bool]
    ) -> None:
        config, course = self.job.config, self.course
        self._tick = saved = time.monotonic()
        self._reported = course.step, course.seen, self.seconds
        with contextlib.closing(self._batches()) as batches:
            for epoch, batch in batches:
                self._train_step(self.runtime.batch(batch))
                at_end = course.epoch_ends
                if self.averages.steps == config.log_steps or at_end:
                    self._report(log, display, epoch)
                self._pass_time()
                stopping = self.team.stopping(stop()) and not course.over
                if at_end or stopping:
                    self.team.check_same(self._learned())
                if at_end or stopping or self._tick - saved >= config.checkpoint_seconds:
                    self._save(log)
                    saved = time.monotonic()
                if stopping:
                    raise Interrupted(self._how_to_go_on())
                if course.over:
                    break

    def _batches(self) -> Generator[tuple[int, Batch], None, None]:
        """Return the batches that are left, each with its epoch."""
        epochs, start = self.course.left()
        for epoch in epochs:
            with contextlib.closing(self.loader.epoch(epoch, start)) as batches:
                yield from ((epoch, batch) for batch in batches)
            start = 0

    def _train_step(self, batch: Batch) -> None:
        """One step of any defense: craft, adapt, minimize."""
        model, runtime, course = self.model, self.runtime, self.course
        self.lr = self.schedule.apply(self.sgd, course.share(len(batch)))
        generator = runtime.generator(self.job.seed, course.step)
        share = Share(batch, rounds=self.job.config.accumulate, generator=generator)
        self.statistics.active = share.divided
        passes = self.meter.forwards, self.meter.backwards
        model.train()
        views = self.descent.views(share, lr=self.lr)
        self.sgd.zero_grad(set_to_none=True)
        terms = {**self.descent.differentiate(share, views), **self._clip()}
        self.stepper.step()
        self.averages.add(self.team.settle(terms, share, self.meter, passes))
        if course.passes is not None:
            self.team.collect(self.meter)  # all ranks end with the same step
        course.advance(len(batch))
        if course.epoch_ends:
            self.defense.after_epoch(model)
        if self.ema:
            self.ema.update(model)

    def _clip(self) -> dict[str, Tensor]:
        """Shorten the gradient if it is too long, and return the length that it had."""
        greatest = self.job.config.gradient_clip
        if greatest is None:
            return {}
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), greatest)
        return {"gradient_norm": norm}

    def _judge(self, epoch: int) -> dict[str, float]:
        """Measure the model on the held-out images at the end of an epoch, if that is asked for.

        Its time and its passes are counted apart from those of the training.
        """
        selection, course = self.selection, self.course
        if not (selection and course.epoch_ends and selection.due(epoch, last=course.over)):
            return {}
        passes = self.meter.forwards, self.meter.backwards
        with self.ema.lent_to(self.model) if self.ema else contextlib.nullcontext():
            measured = selection.judge(epoch)
        self.meter.forwards, self.meter.backwards = passes
        self._tick = time.monotonic()
        return {f"held_out_{name}": value for name, value in measured.items()}

    def _pass_time(self) -> None:
        now = time.monotonic()
        self.seconds, self._tick = self.seconds + now - self._tick, now

    def _report(self, log: MetricsLog | None, display: ProgressDisplay, epoch: int) -> None:
        """Show and write the means since the last report; this waits for the device."""
        self.team.collect(self.meter)
        terms = self.averages.means()
        self.averages.reset()
        self._check_finite(terms)
        self._pass_time()
        course, (step, seen, seconds) = self.course, self._reported
        self._reported = course.step, course.seen, self.seconds
        elapsed = max(self.seconds - seconds, 1e-9)
        rate = (course.seen - seen) / elapsed
        left = (course.steps - course.step) * elapsed / (course.step - step)
        held_out = self._judge(epoch + 1)
        shown = {name: held_out[name] for name in held_out if name == "held_out_union"}
        display.update(self._status(terms | shown, rate, left))
        if log:
            forwards, backwards = course.per_image()
            metrics = {"epoch": epoch + 1, "lr": self.lr, **terms}
            metrics |= {"forwards": forwards, "backwards": backwards, **held_out}
            log.write(course.step, metrics, {"seconds": self.seconds, "images_per_second": rate})

    def _status(self, terms: dict[str, float], rate: float, left: float) -> Status:
        seen = {"images_per_second": rate, "seconds_left": left}
        return self.course.status(terms, lr=self.lr, **seen)

    def _check_finite(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                kept = f" The last good checkpoint stays in {self.job.folder}."
                raise TrainingError(
                    f"The training's {name!r} became {value} by {self.course} "
                    f"(lr {self.lr:.4g}).{kept if self.job.folder else ''} Lower training.peak_lr, "
                    "or use precision '32-true'."
                )

    def _save(self, log: MetricsLog | None) -> None:
        """Save, unless something is not finite; before the end of an epoch, this waits too."""
        self._check_finite(self.averages.means())
        for name, module in (("weights", self.model), ("weights of the defense", self.defense)):
            tensors = [*module.parameters(), *module.buffers()]
            finite = [tensor.detach().isfinite().all() for tensor in tensors]
            if finite and not torch.stack(finite).all():
                self._check_finite({name: math.nan})
        if self.job.folder is None or not self.job.writes:
            return
        if log:
            log.flush()
        self.team.collect(self.meter)
        save_checkpoint(self.job.folder, self._state())

    def finish(self) -> None:
        """Put into the model what the training was to find: averaged or selected weights."""
        averaged = self.ema.values if self.ema else None
        chosen = self.selection.best if self.selection else averaged
        if chosen is not None:
            self.model.load_state_dict(chosen)

    def _learned(self) -> dict[str, Any]:
        """What must be the same on all ranks."""
        parts = {"model": self.model, "defense": self.defense, "optimizer": self.sgd}
        parts |= {"moving average": self.ema} if self.ema else {}
        return {name: part.state_dict() for name, part in parts.items()}

    def _state(self) -> dict[str, Any]:
        options = {"ema": self.ema, "selection": self.selection}
        return {
            "identity": self.job.identity(),
            "step": self.course.step,
            "seen": self.course.seen,
            "seconds": self.seconds,
            "lr": self.lr,
            "forwards": self.meter.forwards,
            "backwards": self.meter.backwards,
            "averages": self.averages.state_dict(),
            "model": self.model.state_dict(),
            "defense": self.defense.state_dict(),
            "optimizer": self.sgd.state_dict(),
            **{name: part.state_dict() for name, part in options.items() if part},
        }

    def _resume(self) -> None:
        folder = self.job.folder
        content = agreed(load_checkpoint(folder) if folder and self.job.writes else None)
        if content is None:
            return
        changed = self.job.difference(content.get("identity", {}))
        if changed:
            raise CheckpointError(
                f"The checkpoint in {folder} was made with other settings ({changed}); choose "
                "another --output, or the settings it was made with."
            )
        try:
            self._restore(content)
        except _UNFIT as error:
            raise CheckpointError(
                f"The checkpoint in {folder} does not fit this model and defense: {error}. Choose "
                "another --output, or the version of the program that wrote it."
            ) from error

    def _restore(self, content: dict[str, Any]) -> None:
        check_state(content, self.course.steps if self.course.passes is None else None)
        self.course.step, self.course.seen = content["step"], content["seen"]
        self.meter.forwards, self.meter.backwards = content["forwards"], content["backwards"]
        self.seconds, self.lr = content["seconds"], content["lr"]
        self.averages.load_state_dict(content["averages"], self.runtime.device)
        self.model.load_state_dict(content["model"])
        self.defense.load_state_dict(content["defense"])
        load_optimizer(self.sgd, content["optimizer"])
        if self.ema:
            self.ema.load_state_dict(content["ema"])
        if self.selection:
            self.selection.load_state_dict(content["selection"])

    def _how_to_go_on(self) -> str:
        where = f"Interrupted at {self.course}"
        if self.job.folder is None:
            return f"{where}; without a folder nothing is kept."
        return f"{where}; saved in {self.job.folder}. Run the same command again to go on."
