"""How far a training is, and where it ends: after its epochs, or with its passes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import final

from multirobust.attacks import PassMeter
from multirobust.config import TrainingConfig
from multirobust.errors import TrainingError
from multirobust.training.progress import Status

__all__ = ["Course"]


@final
class Course:
    """How far a training is: steps taken, images seen, passes spent, and the share that is done.

    It ends after `config.epochs`, or, with `config.passes`, with the step that spends the last of
    them. Such an end may lie within an epoch, which is then the last one and ends there.

    Args:
        config: Says which.
        batches: Steps of an epoch.
        images: Of the training set; the passes are counted for each of them.
        meter: Has counted the passes of all ranks by the time that a step is done.
    """

    def __init__(self, config: TrainingConfig, *, batches: int, images: int, meter: PassMeter):
        self.step, self.seen = 0, 0
        self.meter = meter
        self.passes = config.passes
        self._epochs, self._batches = config.epochs, batches
        self._budget = 2 * images * (config.passes or math.inf)

    @property
    def over(self) -> bool:
        """Whether the training has ended."""
        if self.passes is None:
            return self.step >= self._epochs * self._batches
        return self._spent >= self._budget

    @property
    def epoch_ends(self) -> bool:
        """Whether the step before was the last of its epoch."""
        return self.step % self._batches == 0 or self.over

    @property
    def epoch(self) -> int:
        """The epoch that the step before was in, from 1 on."""
        return max(-(-self.step // self._batches), 1)

    @property
    def steps(self) -> int:
        """Steps of the whole training; if it ends by passes an estimate, 0 before the first."""
        if self.passes is None:
            return self._epochs * self._batches
        if self.over or not self._spent:
            return self.step
        return math.ceil(self.step * self._budget / self._spent)

    @property
    def epochs(self) -> int:
        """Epochs of the whole training, as far as they are known; see `steps`."""
        return self._epochs if self.passes is None else -(-self.steps // self._batches)

    @property
    def _spent(self) -> int:
        return self.meter.forwards + self.meter.backwards

    def left(self) -> tuple[Iterable[int], int]:
        """Return the epochs that are left, from 0 on, and the step that the first begins at."""
        first, start = divmod(self.step, self._batches)
        endless = itertools.count(first)
        return (range(first, self._epochs) if self.passes is None else endless), start

    def share(self, images: int) -> float:
        """Return the share of the training that is done after the next step, in (0, 1].

        What that step will cost is not known: it is taken to cost what the images so far cost in
        the mean, and the first step a forward and a backward pass. The share is never above 1.

        Args:
            images: Of the next step.
        """
        if self.passes is None:
            return (self.step + 1) / self.steps
        mean = self._spent / self.seen if self.seen else 2.0
        return min((self._spent + mean * images) / self._budget, 1.0)

    def advance(self, images: int) -> None:
        """Note that a step is done, whose passes the meter has counted.

        Raises:
            TrainingError: If the training is to end by passes, and there was none.
        """
        self.step += 1
        self.seen += images
        if self.passes is not None and not self._spent:
            raise TrainingError(
                f"training.passes: {self.passes:g} passes can never be reached, since a step of "
                "this defense passes nothing through the model that it was given; call that model "
                "in its `loss`, or train by training.epochs."
            )

    def per_image(self) -> tuple[float, float]:
        """Return the forward and the backward passes so far, per clean image seen."""
        seen = max(self.seen, 1)
        return self.meter.forwards / seen, self.meter.backwards / seen

    def status(
        self,
        terms: Mapping[str, float],
        *,
        lr: float,
        images_per_second: float,
        seconds_left: float,
    ) -> Status:
        """Return what is shown of the training; see there."""
        return Status(
            step=self.step,
            steps=self.steps,
            epoch=self.epoch,
            epochs=self.epochs,
            lr=lr,
            images_per_second=images_per_second,
            backwards=self.per_image()[1],
            seconds_left=seconds_left,
            terms=terms,
            passes=self.passes,
        )

    def __str__(self) -> str:
        about = "about " if self.passes is not None else ""
        return f"step {self.step} of {about}{self.steps}"
