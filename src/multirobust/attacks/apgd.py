"""Auto-PGD: projected gradient ascent that chooses its step sizes itself, for all three norms.

A row moves on alone: its schedule, its step and its best point are tensors of its own, so that rows
that entered the batch at different times share a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from multirobust.attacks.apgd_rules import RULES, WIDTHS, choose, column, radius_of
from multirobust.attacks.engine import IterativeAttack, State
from multirobust.attacks.objectives import CrossEntropy, LogitObjective
from multirobust.errors import InputError, lookup_error
from multirobust.threats.projection import project_l1
from multirobust.types import Images

__all__ = ["APGD", "remember"]


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
        eot: See `IterativeAttack`.
        wide: Of an l1 threat: go to the ball through those of three and two radii. Each of the
            three phases is an attack of its own, with 0.3, 0.3 and 0.4 of the steps, from the best
            point of the one before projected to its ball. The first starts at Gaussian noise. An
            image leaves in the last phase only. The published 100 steps are 103 passes.

    Raises:
        InputError: If a number is out of range, the threat is of another norm, or the objective is
            not a function of the logits or does not fit the targets, or wide the threat.

    References: Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks, ICML 2020 (linf, l2); Mind the box: l1-APGD for sparse
    adversarial attacks on image classifiers, ICML 2021.
    """

    iterations: int = 100
    objective: LogitObjective = CrossEntropy()
    wide: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat.norm not in RULES:
            raise lookup_error("norm of the threat of APGD", self.threat.norm, RULES)
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
        if self.wide and (self.threat.norm != "l1" or self.iterations < len(WIDTHS)):
            raise InputError(
                f"APGD: wide needs an l1 threat and at least {len(WIDTHS)} iterations, got "
                f"{self.threat!r} and {self.iterations}; use wide=False."
            )

    def begin(self, state: State, generator: torch.Generator) -> State:
        """See `IterativeAttack.begin`. Starts at a random point of the ball."""
        x = state["x"]
        if not self.wide:
            return self._start(state, self.threat.sample(x, generator))
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        state = state | {"phase": torch.zeros_like(state["y"])}
        return self._start(state, project_l1(x + noise, x, WIDTHS[0] * self.threat.radius))

    def _start(self, state: State, start: Tensor) -> State:
        """Return the state of rows that have asked nothing yet about the way from their start."""
        none = torch.zeros_like(state["y"])
        lowest = torch.full_like(none, -torch.inf, dtype=start.dtype)
        rule = RULES[self.threat.norm]
        return state | {
            "iterate": start,
            "previous": start,
            "best": start,
            "best_gradient": torch.zeros_like(start),
            "best_loss": lowest,
            "loss": lowest,
            "steps": none,
            "checkpoint": none + rule.interval,
            **rule.begin(start, state, self.threat),
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
        rule = RULES[self.threat.norm]
        lasting = state.keys()
        state = remember(state, gradient, self.loss(state, logits))
        budget, last = self._budget(state)
        due = state["steps"] * 100 >= state["checkpoint"] * budget
        state = rule.review(state, due, self.threat)
        moved = rule.step(state, self.threat)
        state = {name: state[name] for name in lasting} | {
            "previous": state["iterate"],
            "iterate": moved,
            "steps": state["steps"] + 1,
        }
        return state if last is None else self._narrowed(state, last)

    def _budget(self, state: State) -> tuple[Tensor | int, Tensor | None]:
        """Return what checkpoints are shares of and, if wide, which rows ask no more in a phase.

        A wide attack has a checkpoint every 0.04 of a phase's steps, rounded down but at least 1.
        """
        if not self.wide:
            return self.iterations, None
        steps = self.iterations - len(WIDTHS)
        first = min(-(-3 * steps // 10), steps // 2)
        narrow = state["phase"] == len(WIDTHS) - 1
        steps = torch.where(narrow, steps - 2 * first, first)
        return 25 * (steps * 4 // 100).clamp(min=1), ~narrow & (state["steps"] >= steps)

    def _narrowed(self, state: State, last: Tensor) -> State:
        """Return the state with these rows at the start of their next phase."""
        if not last.any():
            return state
        following = state | {"phase": state["phase"] + last.long()}
        radius = column(radius_of(following, self.threat))
        following = self._start(following, project_l1(state["best"], state["x"], radius))
        return {
            name: torch.where(column(last) if value.ndim > 1 else last, following[name], value)
            for name, value in state.items()
        }

    def within(self, state: State, query: Images) -> Tensor | None:
        """See `IterativeAttack.within`. The first phases of a wide attack are not."""
        return state["phase"] == len(WIDTHS) - 1 if self.wide else None


def remember(state: State, gradient: Tensor, loss: Tensor) -> State:
    """Return the state with this answer and, where its loss is the greatest so far, its point.

    Args:
        state: Of rows that asked about their "iterate".
        gradient: Of the loss by the iterate.
        loss: Of each row, (b,); NaN counts as the lowest.
    """
    loss = loss.nan_to_num(nan=-torch.inf).to(state["loss"].dtype)
    state = state | {"gradient": gradient}
    better = loss > state["best_loss"]
    return state | {
        "rose": loss > state["loss"],
        "loss": loss,
        "best": choose(better, state["iterate"], state["best"]),
        "best_gradient": choose(better, state["gradient"], state["best_gradient"]),
        "best_loss": torch.maximum(loss, state["best_loss"]),
    }
