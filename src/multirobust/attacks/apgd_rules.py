"""How Auto-PGD steps, and what it decides at its checkpoints: one rule for linf and l2, one for l1.

The rules hold no tensors: all that a row remembers is in its state.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from multirobust.attacks.engine import State
from multirobust.attacks.nearest import ends, nearest
from multirobust.threats import Threat
from multirobust.threats.native import differing, is_native, sparse_move
from multirobust.threats.projection import project_l1

__all__ = ["RULES", "WIDTHS", "Halving", "Rule", "Sparse", "choose", "column", "radius_of"]


@dataclass(frozen=True)
class Rule(abc.ABC):
    """How rows of one kind of norm step, and what happens at their checkpoints.

    Args:
        interval: Share of the iterations before the first checkpoint, in hundredths.
    """

    interval: int

    @abc.abstractmethod
    def begin(self, start: Tensor, state: State, threat: Threat) -> State:
        """Return what the rule remembers besides what every row does."""

    @abc.abstractmethod
    def review(self, state: State, due: Tensor, threat: Threat) -> State:
        """Return the state after the checkpoint of the rows that are due."""

    @abc.abstractmethod
    def step(self, state: State, threat: Threat) -> Tensor:
        """Return the next iterate, within threat and box."""


@final
@dataclass(frozen=True)
class Halving(Rule):
    """Momentum steps of 2 radii, halved where too few raised the loss or the best stands still.

    Checkpoints come closer: each interval is 0.03 of the iterations shorter, down to 0.06.
    """

    interval: int = 22
    momentum: float = 0.75
    rising: float = 0.75

    def begin(self, start: Tensor, state: State, threat: Threat) -> State:
        """See `Rule.begin`."""
        none = torch.zeros(len(start), dtype=torch.long, device=start.device)
        return {
            **ends(state["x"], threat),
            "step": torch.full_like(none, 2 * threat.radius, dtype=start.dtype),
            "interval": none + self.interval,
            "since": none - 1,  # the first answer is that of the start, not of a step
            "rises": none - 1,
            "halved": none > 0,
            "checked_loss": torch.full_like(none, -torch.inf, dtype=start.dtype),
        }

    def review(self, state: State, due: Tensor, threat: Threat) -> State:
        """See `Rule.review`: conditions 1 and 2 of the paper."""
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
        """See `Rule.step`."""
        iterate, size = state["iterate"], column(state["step"])
        direction = threat.ascent_direction(state["gradient"], iterate)
        ahead = nearest(torch.addcmul(iterate, size, direction), state, threat).sub_(iterate)
        weight = column(torch.where(state["steps"] == 0, 1.0, self.momentum).to(size.dtype))
        behind = (iterate - state["previous"]).mul_(1 - weight)
        return nearest(ahead.mul_(weight).add_(iterate).add_(behind), state, threat)


@final
@dataclass(frozen=True)
class Sparse(Rule):
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

    def begin(self, start: Tensor, state: State, threat: Threat) -> State:
        """See `Rule.begin`. A phase of a wide attack goes on with the pixels of its start."""
        size = radius_of(state, threat).to(start.dtype)
        if "phase" in state:
            changed = _changed(start, state["x"])
            return {"step": size, "moved": changed / self.factor, "changed": changed}
        pixels = torch.full_like(size, start[0].numel())
        return {"step": size, "moved": pixels * self.density, "changed": pixels}

    def review(self, state: State, due: Tensor, threat: Threat) -> State:
        """See `Rule.review`."""
        if _certainly_none(due):
            return state
        changed = _changed(state["best"], state["x"])
        fewer = changed < self.fewer * state["changed"]
        radius = radius_of(state, threat).to(state["step"].dtype)
        shorter = torch.maximum(state["step"] / self.factor, self.smallest * radius)
        size = torch.where(fewer, radius, shorter)
        return _restart(state, due & fewer) | {
            "step": torch.where(due, size, state["step"]),
            "moved": torch.where(due, changed / self.factor, state["moved"]),
            "changed": torch.where(due, changed, state["changed"]),
            "checkpoint": state["checkpoint"] + self.interval * due,
        }

    def step(self, state: State, threat: Threat) -> Tensor:
        """See `Rule.step`. A pixel that the box keeps from following its gradient stays."""
        return project_l1(self._moved(state), state["x"], column(radius_of(state, threat)))

    def _moved(self, state: State) -> Tensor:
        iterate, gradient, size = state["iterate"], state["gradient"], state["step"]
        count = state["moved"].ceil().long().clamp(1, iterate[0].numel())
        if is_native(iterate, gradient, size):
            return sparse_move(gradient, iterate, count, size)
        score = _gain(gradient, iterate).flatten(1)
        largest = score.sort(dim=1, descending=True).values  # without waiting for the device
        least = largest.gather(1, count[:, None] - 1)
        least = torch.where(least > 0, least, torch.inf)
        chosen = (score >= least).to(score.dtype)
        size = size / chosen.sum(1).clamp(min=1)
        direction = gradient.sign().mul_(chosen.reshape(gradient.shape))
        return torch.addcmul(iterate, column(size), direction)


WIDTHS = (3, 2, 1)
"""The radii of the phases of a wide attack, in units of that of the threat."""


def radius_of(state: State, threat: Threat) -> Tensor:
    """Return the l1 radius in which each row moves, (b,)."""
    if "phase" not in state:
        return torch.full_like(state["y"], threat.radius, dtype=state["x"].dtype)
    return (WIDTHS[0] - state["phase"]).to(state["x"].dtype) * threat.radius


def _gain(gradient: Tensor, iterate: Tensor) -> Tensor:
    """Return the size of the gradient, or 0 where the box keeps the pixel from following it."""
    room = (gradient > 0).to(iterate.dtype).sub_(iterate).abs_()
    return room.sign_().mul_(gradient.abs())


def _changed(images: Tensor, x: Tensor) -> Tensor:
    """Return how many pixels differ from the clean ones, (b,), as a float."""
    if is_native(images, x):
        return differing(images, x)
    return (images != x).flatten(1).sum(1).to(x.dtype)


def _certainly_none(rows: Tensor) -> bool:
    """Tell whether no row is chosen, where asking costs nothing: on a CPU."""
    return rows.device.type == "cpu" and not rows.any()


def _restart(state: State, rows: Tensor) -> State:
    """Return the state with these rows back at their best point."""
    if _certainly_none(rows):
        return state
    return state | {
        "iterate": choose(rows, state["best"], state["iterate"]),
        "gradient": choose(rows, state["best_gradient"], state["gradient"]),
        "loss": torch.where(rows, state["best_loss"], state["loss"]),
    }


RULES: dict[str, Rule] = {"linf": Halving(), "l2": Halving(), "l1": Sparse()}


def choose(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the images of a for these rows, and those of b for the others."""
    return torch.where(column(rows), a, b)


def column(values: Tensor) -> Tensor:
    """Return a number for each image, (b,), as (b, 1, 1, 1)."""
    return values[:, None, None, None]
