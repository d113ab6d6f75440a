"""The time of one training step, and of the bare passes through the network that it cannot avoid.

A step is one of the loop's own (`multirobust.training.loop.Loop`), driven through its `stop`
callback, which the loop asks after every step: there a time is marked, a CUDA event that nobody
waits for before the last step is queued.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import torch
from slices import Deadline
from torch import Tensor
from torch.nn import functional as F

from multirobust.attacks import Sampler
from multirobust.defenses import Defense
from multirobust.errors import Interrupted
from multirobust.training import Silent
from multirobust.training.loop import Loop

__all__ = [
    "Clock",
    "Needs",
    "Rotation",
    "Times",
    "arms_of",
    "held",
    "measure",
    "rotate",
    "time_bare",
    "time_steps",
    "warm_rounds",
]

TRAINING_PASSES = {
    "trades": 2,
    "rst_linf": 2,
    "adv_avg": 3,
    "sat_ac": 3,
    "ramp": 4,
    "mng_ac": 5,
    "mng_ac_rst": 5,
    "mng_ac_spatial": 5,
    "mng_ac_mixed": 5,
}
"""Passes that form weight gradients, where there is more than the one of the loss: TRADES has the
clean and the adversarial images, `adv_avg` those of each norm, the consistency loss three views,
`ramp` two views, the stronger of both once more, and its natural training;
`mng_ac` has besides these the inner and the outer gradient of its look-ahead."""

SECOND_ORDER_PASSES = {"mng_ac": 1, "mng_ac_rst": 1, "mng_ac_spatial": 1, "mng_ac_mixed": 1}
"""Backward passes through a gradient: that of the inner gradient of the look-ahead, to the images.
"""


@final
@dataclass(frozen=True)
class Needs:
    """The passes through the classifier that one step takes, per image.

    Args:
        forwards: All forward passes, as `PassMeter` counts them.
        backwards: All backward passes, second-order ones among them.
        training: How many of the backward passes form weight gradients.
        second_order: How many go through a gradient.
    """

    forwards: float
    backwards: float
    training: int
    second_order: int

    @classmethod
    def of(cls, defense: str, forwards: float, backwards: float) -> Needs:
        """Sort the counted passes of a named defense by what they compute."""
        training = TRAINING_PASSES.get(defense, 1)
        return cls(forwards, backwards, training, SECOND_ORDER_PASSES.get(defense, 0))

    @property
    def input_gradients(self) -> float:
        """Forward-backward passes that lead to the images only."""
        return self.backwards - self.training - self.second_order

    @property
    def forwards_only(self) -> float:
        """Forward passes without a backward pass."""
        return self.forwards - self.training - self.input_gradients

    def limit(self, bare: dict[str, float]) -> float:
        """Return the seconds of these passes alone.

        A second-order pass counts as two input-gradient passes. Backward through the inner gradient
        to the images, each convolution meets four of its size: the direction v with its input and
        with the gradient of its output, and its weights once on the way up and once on the way
        down. An input-gradient pass has two.

        Args:
            bare: Seconds of the bare passes "forward", "input_gradient" and "training".
        """
        return (
            self.training * bare["training"]
            + (self.input_gradients + 2 * self.second_order) * bare["input_gradient"]
            + self.forwards_only * bare["forward"]
        )


@final
class Rotation(Sampler):
    """Every attack in turn, so that each weighs the same in a mean."""

    def probabilities(self) -> list[float]:
        """See `Sampler.probabilities`."""
        turn = sum(self.draws) % len(self.attacks)
        return [float(index == turn) for index in range(len(self.attacks))]


def rotate(defense: Defense[Any]) -> None:
    """Let a defense that draws its attack take every attack in turn."""
    if len(arms_of(defense)) > 1:
        defense.sampler = Rotation(defense.sampler.attacks)


def arms_of(defense: Defense[Any]) -> list[str]:
    """Return the attacks that a defense draws from, by norm, or one empty name if it draws none.

    Another attack in the same norm is called by its class too.
    """
    sampler = getattr(defense, "sampler", None)
    attacks = sampler.attacks if isinstance(sampler, Sampler) else ()
    if len(attacks) < 2:
        return [""]
    arms: list[str] = []
    for attack in attacks:
        norm = attack.threats[0].norm
        arms.append(f"{norm} {type(attack).__name__.lower()}" if norm in arms else norm)
    return arms


@contextlib.contextmanager
def held(target: object, **values: object) -> Iterator[None]:
    """Set attributes, such as flags of a backend, and set them back."""
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


@final
class Clock:
    """Marks moments of the device without waiting for it.

    On a CPU they are of processor time if there is one thread, which what else runs on the machine
    disturbs little, and of wall time otherwise.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.cuda = device.type == "cuda"
        self._read = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def mark(self) -> Any:
        """Return a moment: an event in the stream, or the time of a device that does not queue."""
        if not self.cuda:
            return self._read()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, marks: list[Any]) -> list[float]:
        """Return the seconds between each two marks in a row; waits for the device."""
        pairs = list(itertools.pairwise(marks))
        if not self.cuda:
            return [end - start for start, end in pairs]
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]


@final
@dataclass
class Times:
    """What the repeats of one case measured, in seconds; the numbers that count are medians.

    Args:
        arms: Names of the attacks that the steps rotate through.
        steps: Of each repeat, the seconds of one step with each attack.
        bare: Of each repeat, the seconds of each bare pass, cuDNN set as in the loop.
        autotuned: The same with the algorithms that cuDNN finds fastest; empty without CUDA.
        forwards: Forward passes per image and step, mean over the attacks.
        backwards: Backward passes, likewise.
        peak_bytes: The most memory that a step had allocated; None without CUDA.
    """

    arms: list[str]
    steps: list[list[float]] = field(default_factory=list)
    bare: list[dict[str, float]] = field(default_factory=list)
    autotuned: list[dict[str, float]] = field(default_factory=list)
    forwards: float = 0.0
    backwards: float = 0.0
    peak_bytes: int | None = None

    def by_arm(self) -> dict[str, float]:
        """Median seconds of a step with each attack."""
        columns = zip(*self.steps, strict=True)
        return dict(zip(self.arms, map(statistics.median, columns), strict=True))

    def step(self) -> float:
        """Seconds of a step: the mean over the attacks, each equally probable."""
        return statistics.fmean(self.by_arm().values())


def measure(loop: Loop, *, repeats: int, passes: int, deadline: Deadline) -> Times:
    """Time steps and bare passes in turn, after untimed rounds.

    Args:
        loop: A training whose attacks rotate; see `rotate`.
        repeats: Rounds, each of one step with every attack and of all bare passes.
        passes: How often a bare pass runs in a round.
        deadline: Ends the rounds early; the result may then hold fewer, or none.
    """
    clock, arms = Clock(loop.runtime.device), arms_of(loop.job.defense)
    times = Times(arms)
    warm = (_round(loop, Times(arms), passes, clock, deadline) for _ in range(warm_rounds(loop)))
    if all(warm):
        for _ in range(repeats):
            if deadline.lap() or not _round(loop, times, passes, clock, deadline):
                break
    return times


def warm_rounds(loop: Loop) -> int:
    """Return how many rounds go by before a step is what it stays: replayed, if it is."""
    return 3 if loop.faster.replays.enabled else 1


def _round(loop: Loop, times: Times, passes: int, clock: Clock, deadline: Deadline) -> bool:
    """Measure everything once; false if time ran out before."""
    if not time_steps(loop, times, clock, deadline):
        return False
    tf32 = torch.backends.cudnn.allow_tf32
    with loop.runtime.reproducible():
        times.bare.append(time_bare(loop, passes, clock))
    if clock.cuda:
        with held(torch.backends.cudnn, allow_tf32=tf32, deterministic=False, benchmark=True):
            times.autotuned.append(time_bare(loop, passes, clock))
    return True


def time_steps(
    loop: Loop, times: Times, clock: Clock, deadline: Deadline, *, untimed: int = 1
) -> bool:
    """Take an untimed step and one with each attack; false if time ran out before.

    Args:
        loop: See `measure`.
        times: Takes what is measured.
        clock: Marks the moments.
        deadline: Ends the steps early.
        untimed: Steps before the timed ones, 0 or 1. With 0 the first one has the start of an
            epoch in it, which a CPU does not notice.
    """
    count, first, meter = len(times.arms), loop.course.step + untimed, loop.meter
    marks: list[Any] = []
    passed: list[tuple[int, int]] = []

    def stop() -> bool:
        marks.append(clock.mark())
        passed.append((meter.forwards, meter.backwards))
        return deadline.lap() or len(marks) > count

    if clock.cuda:
        torch.cuda.reset_peak_memory_stats(clock.device)
    if not untimed:
        marks.append(clock.mark())
        passed.append((meter.forwards, meter.backwards))
    with contextlib.suppress(Interrupted):
        loop.run(Silent(), "step time", stop)
    if len(marks) <= count:
        return False
    seconds = clock.between(marks)
    turn = {(first + index) % count: index for index in range(count)}
    times.steps.append([seconds[turn[arm]] for arm in range(count)])
    images = count * loop.job.config.batch_size
    times.forwards = (passed[-1][0] - passed[0][0]) / images
    times.backwards = (passed[-1][1] - passed[0][1]) / images
    if clock.cuda:
        peak = torch.cuda.max_memory_allocated(clock.device)
        times.peak_bytes = max(times.peak_bytes or 0, peak)
    return True


def time_bare(loop: Loop, passes: int, clock: Clock) -> dict[str, float]:
    """Return the seconds of each bare pass on one batch, as the loop makes its passes.

    In its precision, compiled and replayed if the loop's are.
    """
    model, replays = loop.faster.model, loop.faster.replays
    parameters = tuple(loop.model.parameters())
    batch = loop.runtime.batch(next(iter(loop.loader.epoch(0))))

    def forward(x: Tensor, y: Tensor, *, generator: None) -> Tensor:
        with torch.no_grad():
            return model(x)

    def loss(images: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(images).float(), y)

    def input_gradient(x: Tensor, y: Tensor, *, generator: None) -> Tensor:
        images = x.detach().requires_grad_()
        return torch.autograd.grad(loss(images, y), images)[0]

    def training(x: Tensor, y: Tensor, *, generator: None) -> Tensor:
        return torch.autograd.grad(loss(x, y), parameters)[-1]

    model.train()
    seconds = {}
    with loop.runtime.autocast():
        for kind in (forward, input_gradient, training):
            for parameter in parameters:
                parameter.requires_grad_(kind is not input_gradient)
            key = ("bare", kind.__name__, torch.backends.cudnn.benchmark)
            run = functools.partial(replays, key, kind, (batch.x, batch.y))
            for _ in range(warm_rounds(loop) - 1):
                run()
            seconds[kind.__name__] = _mean_time(run, passes, clock)
    for parameter in parameters:
        parameter.requires_grad_()
    return seconds


def _mean_time(run: Callable[[], Any], passes: int, clock: Clock) -> float:
    run()
    start = clock.mark()
    for _ in range(passes):
        run()
    return clock.between([start, clock.mark()])[0] / passes
