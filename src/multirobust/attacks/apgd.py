"""Auto-PGD: projected gradient ascent that chooses its step sizes itself, for all three norms.

A row moves on alone: its schedule, its step and its best point are tensors of its own, so that rows
that entered the batch at different times share a pass.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from multirobust.attacks.engine import IterativeAttack, State
from multirobust.attacks.objectives import CrossEntropy, LogitObjective
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Threat
from multirobust.types import Images

__all__ = ["APGD"]


@final
@dataclass(frozen=True, kw_only=True)
class APGD(IterativeAttack):
    """Auto-PGD: steps that shrink when progress stalls, each time from the best point so far.

    In linf and l2 steps with momentum, halved at checkpoints; in l1 sparse steps, whose number of
    pixels follows that of the best point. Costs one forward-backward pass an iteration, the first
    at a random start: n iterations are n - 1 steps. With targets, one more forward pass an image.
    An image leaves at its first misclassified iterate, which need not be one of greatest loss.

    Args:
        threat: The ball, in linf, l2 or l1. The density of `L1` is not used: the attack adapts its
            own.
        iterations: Forward-backward passes of each row, at least 1. The published implementation
            counts steps: its 100 are 101 passes.
        objective: The loss to raise: `CrossEntropy`, `DLR` or `Margin`, and with targets
            `TargetedDLR`.
        targets: See `IterativeAttack`.
        restarts: See `IterativeAttack`.

    Raises:
        InputError: If a number is out of range, the threat is of another norm, or the objective is
            not a function of the logits or does not fit the targets.

    References: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks, ICML 2020 (linf, l2); Mind the box: l1-APGD for sparse
    adversarial attacks on image classifiers, ICML 2021.
    """

    iterations: int = 100
    objective: LogitObjective = CrossEntropy()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat.norm not in _RULES:
            raise lookup_error("norm of the threat of APGD", self.threat.norm, _RULES)
        if not isinstance(self.objective, LogitObjective):
            raise InputError(
                "APGD: objective must be a loss of the logits, the label and the target alone, got "
                f"{self.objective!r}; use CrossEntropy(), DLR(), Margin() or TargetedDLR()."
            )
        if self.objective.targeted != bool(self.targets):
            way = "set targets=9" if self.objective.targeted else "use TargetedDLR() or targets=0"
            raise InputError(
                "APGD: a targeted objective and targets go together, got "
                f"{self.objective!r} with targets={self.targets}; {way}."
            )

    def begin(self, state: State, generator: torch.Generator) -> State:
        """See `IterativeAttack.begin`. Starts at a random point of the ball."""
        start = self.threat.sample(state["x"], generator)
        none = torch.zeros_like(state["y"])
        lowest = torch.full_like(none, -torch.inf, dtype=start.dtype)
        rule = _RULES[self.threat.norm]
        return state | {
            "iterate": start,
            "previous": start,
            "best": start,
            "best_gradient": torch.zeros_like(start),
            "best_loss": lowest,
            "loss": lowest,
            "steps": none,
            "checkpoint": none + rule.interval,
            **rule.begin(start, self.threat),
        }

    def query(self, state: State) -> Images:
        """See `IterativeAttack.query`."""
        return state["iterate"]

    def loss(self, state: State, logits: Tensor) -> Tensor:
        """See `IterativeAttack.loss`."""
        return self.objective.of(logits, state["y"], state["target"])

    def advance(
        self, state: State, logits: Tensor, gradient: Tensor | None, generator: torch.Generator
    ) -> State:
        """See `IterativeAttack.advance`. Draws nothing."""
        assert gradient is not None
        rule = _RULES[self.threat.norm]
        lasting = state.keys()
        state = _remember(state, gradient, self.loss(state, logits))
        due = state["steps"] * 100 >= state["checkpoint"] * self.iterations
        state = rule.review(state, due, self.threat)
        moved = rule.step(state, self.threat)
        return {name: state[name] for name in lasting} | {
            "previous": state["iterate"],
            "iterate": moved,
            "steps": state["steps"] + 1,
        }


def _remember(state: State, gradient: Tensor, loss: Tensor) -> State:
    """Return the state with this answer and, where its loss is the greatest so far, its point."""
    loss = loss.nan_to_num(nan=-torch.inf).to(state["loss"].dtype)
    state = state | {"gradient": gradient}
    better = loss > state["best_loss"]
    return state | {
        "rose": loss > state["loss"],
        "loss": loss,
        "best": _choose(better, state["iterate"], state["best"]),
        "best_gradient": _choose(better, state["gradient"], state["best_gradient"]),
        "best_loss": torch.maximum(loss, state["best_loss"]),
    }


def _restart(state: State, rows: Tensor) -> State:
    """Return the state with these rows back at their best point."""
    return state | {
        "iterate": _choose(rows, state["best"], state["iterate"]),
        "gradient": _choose(rows, state["best_gradient"], state["gradient"]),
        "loss": torch.where(rows, state["best_loss"], state["loss"]),
    }


@dataclass(frozen=True)
class _Rule(abc.ABC):
    """How rows of one kind of norm step, and what happens at their checkpoints.

    Args:
        interval: Share of the iterations before the first checkpoint, in hundredths.
    """

    interval: int

    @abc.abstractmethod
    def begin(self, start: Tensor, threat: Threat) -> State:
        """Return what the rule remembers besides what every row does."""

    @abc.abstractmethod
    def review(self, state: State, due: Tensor, threat: Threat) -> State:
        """Return the state after the checkpoint of the rows that are due."""

    @abc.abstractmethod
    def step(self, state: State, threat: Threat) -> Tensor:
        """Return the next iterate, within threat and box."""


@final
@dataclass(frozen=True)
class _Halving(_Rule):
    """Momentum steps of 2 radii, halved where too few raised the loss or the best stands still.

    Checkpoints come closer: each interval is 0.03 of the iterations shorter, down to 0.06.
    """

    interval: int = 22
    momentum: float = 0.75
    rising: float = 0.75

    def begin(self, start: Tensor, threat: Threat) -> State:
        """See `_Rule.begin`."""
        none = torch.zeros(len(start), dtype=torch.long, device=start.device)
        return {
            "step": torch.full_like(none, 2 * threat.radius, dtype=start.dtype),
            "interval": none + self.interval,
            "since": none - 1,  # the first answer is that of the start, not of a step
            "rises": none - 1,
            "halved": none > 0,
            "checked_loss": torch.full_like(none, -torch.inf, dtype=start.dtype),
        }

    def review(self, state: State, due: Tensor, threat: Threat) -> State:
        """See `_Rule.review`: conditions 1 and 2 of the paper."""
        since, rises = state["since"] + 1, state["rises"] + state["rose"]
        rarely = rises < self.rising * since
        stuck = ~state["halved"] & (state["best_loss"] <= state["checked_loss"])
        halve = due & (rarely | stuck)
        interval = torch.where(due, (state["interval"] - 3).clamp(min=6), state["interval"])
        return _restart(state, halve) | {
            "step": torch.where(halve, state["step"] / 2, state["step"]),
            "interval": interval,
            "checkpoint": torch.where(due, state["checkpoint"] + interval, state["checkpoint"]),
            "since": torch.where(due, 0, since),
            "rises": torch.where(due, 0, rises),
            "halved": torch.where(due, halve, state["halved"]),
            "checked_loss": torch.where(due, state["best_loss"], state["checked_loss"]),
        }

    def step(self, state: State, threat: Threat) -> Tensor:
        """See `_Rule.step`."""
        x, iterate, size = state["x"], state["iterate"], _column(state["step"])
        direction = threat.ascent_direction(state["gradient"], iterate)
        ahead = threat.project(iterate + size * direction, x) - iterate
        weight = _column(torch.where(state["steps"] == 0, 1.0, self.momentum).to(size.dtype))
        behind = iterate - state["previous"]
        return threat.project(iterate + weight * ahead + (1 - weight) * behind, x)


@final
@dataclass(frozen=True)
class _Sparse(_Rule):
    """Steps of one radius shared by the pixels of largest gradient, ever fewer of them.

    At each checkpoint as many pixels as the best point has changed, divided by `factor`. Where
    these are fewer than before, a new start from the best point with the full step; elsewhere the
    step is divided by `factor`, down to a tenth of the radius.
    """

    interval: int = 4
    density: float = 0.2
    factor: float = 1.5
    fewer: float = 0.95
    smallest: float = 0.1

    def begin(self, start: Tensor, threat: Threat) -> State:
        """See `_Rule.begin`."""
        size = start.new_full((len(start),), threat.radius)
        pixels = torch.full_like(size, start[0].numel())
        return {"step": size, "moved": pixels * self.density, "changed": pixels}

    def review(self, state: State, due: Tensor, threat: Threat) -> State:
        """See `_Rule.review`."""
        changed = (state["best"] != state["x"]).flatten(1).sum(1).to(state["changed"].dtype)
        fewer = changed < self.fewer * state["changed"]
        shorter = (state["step"] / self.factor).clamp(min=self.smallest * threat.radius)
        size = torch.where(fewer, threat.radius, shorter)
        return _restart(state, due & fewer) | {
            "step": torch.where(due, size, state["step"]),
            "moved": torch.where(due, changed / self.factor, state["moved"]),
            "changed": torch.where(due, changed, state["changed"]),
            "checkpoint": state["checkpoint"] + self.interval * due,
        }

    def step(self, state: State, threat: Threat) -> Tensor:
        """See `_Rule.step`. A pixel that the box keeps from following its gradient stays."""
        iterate, gradient = state["iterate"], state["gradient"]
        stuck = ((gradient > 0) & (iterate >= 1)) | ((gradient < 0) & (iterate <= 0))
        score = (gradient.abs() * ~stuck).flatten(1)
        count = state["moved"].ceil().long().clamp(1, score.shape[1])[:, None]
        largest = score.topk(int(count.max()), dim=1).values  # a quarter of the time of a sort
        least = largest.gather(1, count - 1)
        chosen = (score >= least) & (score > 0)
        size = state["step"] / chosen.sum(1).clamp(min=1)
        direction = gradient.sign() * chosen.reshape(gradient.shape)
        return threat.project(iterate + _column(size) * direction, state["x"])


_RULES: dict[str, _Rule] = {"linf": _Halving(), "l2": _Halving(), "l1": _Sparse()}


def _choose(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the images of a for these rows, and those of b for the others."""
    return torch.where(_column(rows), a, b)


def _column(values: Tensor) -> Tensor:
    """Return a number for each image, (b,), as (b, 1, 1, 1)."""
    return values[:, None, None, None]
