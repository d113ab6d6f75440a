"""Iterative attacks as rows: an image leaves the batch when it is broken, and the next one enters.

An `IterativeAttack` says what to ask the model and how to move on; the engine owns the model, the
batch and the queue. Every row counts its own iterations, so rows that entered at different times
share one forward pass and the device stays full.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.attacks.base import Attack, attacking, check_batch, input_gradient
from multirobust.errors import InputError
from multirobust.threats import Threat
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels

__all__ = ["IterativeAttack", "State", "run_rows"]

State: TypeAlias = dict[str, Tensor]
"""What an attack remembers of its rows: tensors whose first dimension is the row.

The engine adds "x" (clean images, at least float32), "y" (true labels), "target" (the class to
reach, or y) and "restart" (how often the row was tried before)."""


@dataclass(frozen=True, kw_only=True)
class IterativeAttack(Attack, abc.ABC):
    """An attack that asks the model about one image a row and iteration.

    Args:
        threat: The ball.
        iterations: Questions to the model for each row, at least 1.
        targets: 0 attacks untargeted, one row an image. Otherwise, one row an image for each of so
            many wrong classes, those of greatest logit first, or for all if there are fewer.
        restarts: How often each row is tried anew, at least 1.
        eot: Passes of each question to a randomized model, at least 1. The attack gets the mean of
            their logits and of the gradients of its loss (expectation over transformation), and
            the mean of the logits says what is misclassified.

    References: Athalye, Engstrom, Ilyas and Kwok, Synthesizing robust adversarial examples, ICML
    2018 (expectation over transformation).
    """

    threat: Threat
    iterations: int
    targets: int = 0
    restarts: int = 1
    eot: int = 1

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("targets", 0), ("restarts", 1), ("eot", 1)):
            value = getattr(self, name)
            if value < least:
                raise InputError(
                    f"{type(self).__name__}: {name} must be at least {least}, got {value!r}."
                )

    @property
    def threats(self) -> tuple[Threat, ...]:
        """Its one threat."""
        return (self.threat,)

    @abc.abstractmethod
    def begin(self, state: State, generator: torch.Generator) -> State:
        """Return the state of new rows, given what the engine adds to it; this stays in it."""

    @abc.abstractmethod
    def query(self, state: State) -> Images:
        """Return the images (b, c, h, w) to ask the model about next, within [0, 1]."""

    def loss(self, state: State, logits: Tensor) -> Tensor | None:
        """Return what to differentiate by the query, (b,).

        An attack that does not define it gets no gradient, and its queries no backward pass. Called
        with gradients enabled; logits are those of the query.
        """
        return None

    @abc.abstractmethod
    def advance(
        self, state: State, logits: Tensor, gradient: Tensor | None, generator: torch.Generator
    ) -> State:
        """Return the state after the answer to the query: its logits, and its loss's gradient.

        The gradient is finite: an entry that is NaN counts as zero.
        """

    def within(self, state: State, query: Images) -> Tensor | None:
        """Return which queries lie in the threat, (b,) bool; None if all do by construction."""
        return None

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`. Returns the clean image where it found no adversarial one."""
        return run_rows(self, model, x, y, batch_size=len(x), generator=generator)

    def run(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.run`. Rows of broken images leave and the next ones enter."""
        return run_rows(self, model, x, y, batch_size=batch_size, generator=generator)


def run_rows(
    attack: IterativeAttack,
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> Images:
    """Run an attack on any number of images with at most `batch_size` rows at a time.

    An image that is broken leaves with all its rows. The same arguments give the same images; the
    batch size decides which random numbers a row gets. A NaN among the logits of a query ends the
    row like an adversarial image: the query is returned, so that whoever checks it sees the NaN.

    Args:
        attack: The attack.
        model: Maps images to logits.
        x: Clean images (n, c, h, w) in [0, 1].
        y: Labels (n,).
        batch_size: Rows a pass, at least 1; bounds the memory.
        generator: On the device of x; without one, a fresh one with seed 0.

    Returns:
        For each image the first adversarial image found, else the clean image; at least float32.

    Raises:
        InputError: If x and y are no batch (see `check_batch`), batch_size is below 1, or the
            attack needs a gradient and none leads from the logits to the images.
    """
    check_batch(x, y)
    if batch_size < 1:
        raise InputError(f"run_rows: batch_size must be at least 1, got {batch_size}.")
    generator = generator or torch.Generator(x.device).manual_seed(0)
    with attacking(model), torch.no_grad():
        return _Engine(attack, model, x.detach(), y, batch_size, generator).run()


class _Engine:
    """The rows in the batch, the jobs in the queue, and what was found."""

    def __init__(
        self,
        attack: IterativeAttack,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        generator: torch.Generator,
    ):
        self.attack, self.model, self.generator = attack, model, generator
        self.differentiates = type(attack).loss is not IterativeAttack.loss
        self.x, self.y, self.batch_size = x.to(work_dtype(x)), y, batch_size
        self.found = self.x.clone()
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.jobs = self._jobs()
        self.next = 0

    def _jobs(self) -> Tensor:
        """Return image, target and restart of every job, (3, jobs), in the order of entry."""
        targets = self._ranked_classes() if self.attack.targets else self.y[:, None]
        image = torch.arange(len(self.x), device=self.x.device).repeat(targets.shape[1])
        once = torch.stack((image, targets.T.reshape(-1), torch.zeros_like(image)))
        restarts = torch.arange(self.attack.restarts, device=self.x.device)
        restarts = F.pad(restarts[None], (0, 0, 2, 0))
        return (once[:, None] + restarts[:, :, None]).flatten(1)

    def _ranked_classes(self) -> Tensor:
        """Return the wrong classes of greatest logit, (n, targets), from one forward pass."""
        logits = torch.cat([self._logits(part) for part in self.x.split(self.batch_size)])
        wrong = logits.scatter(1, self.y[:, None], -torch.inf)
        return wrong.topk(min(self.attack.targets, logits.shape[1] - 1), dim=1).indices

    def run(self) -> Tensor:
        """Return the images found."""
        job, state = self._enter(self.batch_size)
        step = torch.zeros_like(job)
        while len(job):
            query = self.attack.query(state)
            logits, gradient = self._ask(state, query)
            self._keep(job, state, query, logits)
            step = step + 1
            done = self.broken[job] | (step >= self.attack.iterations)
            finished = int(done.sum())
            if finished < len(done):
                state = self.attack.advance(state, logits, gradient, self.generator)
            if finished:
                job, state, step = self._refill(job, state, step, done)
        return self.found

    def _ask(self, state: State, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the query and, for an attack with a loss, its gradient."""
        if not self.differentiates:
            return self._logits(query), None

        def loss(logits: Tensor) -> Tensor:
            value = self.attack.loss(state, logits)
            assert value is not None
            return value

        gradient, logits = input_gradient(self.model, query, loss)
        gradient = gradient.nan_to_num(nan=0.0)
        if self.attack.eot == 1:
            return logits, gradient
        for _ in range(self.attack.eot - 1):
            more, again = input_gradient(self.model, query, loss)
            gradient, logits = gradient + more.nan_to_num(nan=0.0), logits + again
        return logits / self.attack.eot, gradient / self.attack.eot

    def _logits(self, images: Tensor) -> Tensor:
        """Return the logits, of a randomized model their mean."""
        logits = self.model(images)
        for _ in range(self.attack.eot - 1):
            logits = logits + self.model(images)
        return logits / self.attack.eot if self.attack.eot > 1 else logits

    def _keep(self, job: Tensor, state: State, query: Tensor, logits: Tensor) -> None:
        """Keep the queries that are wrong: of several rows of one image, that of the first."""
        wrong = (logits.argmax(1) != state["y"]) | logits.isnan().any(1)
        within = self.attack.within(state, query)
        wrong = wrong if within is None else wrong & within
        rows = wrong.nonzero().squeeze(1)
        first = torch.full_like(self.y, len(job)).scatter_reduce(0, job[rows], rows, "amin")
        rows = rows[first[job[rows]] == rows]
        self.found[job[rows]] = query[rows]
        self.broken[job[rows]] = True

    def _enter(self, count: int) -> tuple[Tensor, State]:
        """Take the next jobs whose image still stands, at most `count`, and begin them."""
        chosen: list[Tensor] = []
        missing = count
        while missing and self.next < self.jobs.shape[1]:
            jobs = self.jobs[:, self.next : self.next + missing]
            self.next += jobs.shape[1]
            chosen.append(jobs[:, ~self.broken[jobs[0]]])
            missing -= chosen[-1].shape[1]
        image, target, restart = torch.cat(chosen, 1) if chosen else self.jobs[:, :0]
        if not len(image):
            return image, {}
        state = {"x": self.x[image], "y": self.y[image], "target": target, "restart": restart}
        return image, self.attack.begin(state, self.generator)

    def _refill(
        self, job: Tensor, state: State, step: Tensor, done: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        """Replace the rows that are done by new ones, or close the gap when none are left."""
        kept = (~done).nonzero().squeeze(1)
        fresh, begun = self._enter(self.batch_size - len(kept))
        job = torch.cat((job[kept], fresh))
        step = torch.cat((step[kept], torch.zeros_like(fresh)))
        if not len(fresh):
            return job, {name: value[kept] for name, value in state.items()}, step
        return job, {n: torch.cat((v[kept], begun[n])) for n, v in state.items()}, step
