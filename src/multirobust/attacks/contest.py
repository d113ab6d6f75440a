"""Runs that are watched: how far each one raised the margin of its image, and when.

`run_rows` says which images an attack breaks. A `Contest` also says how close the others came, so
that a budget can be given to those that are worth it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from multirobust.attacks.base import input_gradient
from multirobust.attacks.engine import IterativeAttack, State, run_rows
from multirobust.attacks.objectives import Margin
from multirobust.threats.projection import work_dtype

__all__ = ["Contest", "Rows", "joined", "selected"]

Rows: TypeAlias = dict[str, Tensor]
"""Runs, one a row: "image" and "target"; after a run also "point", the query of greatest margin,
"best", that margin, and "half", the greatest margin when half of the queries in the ball were
asked. A margin is positive where the model errs (see `Margin`)."""

_STUCK = 3
_REVIEWS = (12, 6, 3, 2)
_PROMISE = 0.75
"""How much of its latest gain a random search is thought to make again with twice the queries."""


class Contest:
    """The images under attack, which of them stand, and how close each was to falling.

    Used within `attacking(model)` and without gradients.

    Args:
        model: Maps images to logits.
        x: Clean images (n, c, h, w).
        y: Labels (n,).
        batch_size: Rows a pass.
        generator: On the device of x.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, batch_size: int, generator: torch.Generator
    ):
        self.model, self.batch_size, self.generator = model, batch_size, generator
        self.x, self.y = x.to(work_dtype(x)), y
        self.found = self.x.clone()
        self.standing = torch.ones_like(y, dtype=torch.bool)
        self.flat = torch.zeros_like(self.standing)
        self.margin = torch.full_like(y, -torch.inf, dtype=self.x.dtype)
        self.clean = torch.zeros_like(self.margin)

    def untargeted(self, among: Tensor | None = None) -> Iterator[Rows]:
        """Yield one row for each image that stands, of all or of some (n,), a batch at a time."""
        standing = self.standing if among is None else self.standing & among
        image = standing.nonzero().squeeze(1)
        for part in image.split(self.batch_size):
            yield {"image": part, "target": self.y[part]}

    def targeted(self, most: int) -> Rows:
        """Return a row for each standing image and wrong class, the `most` of greatest logit.

        Costs a forward pass of each image. Notes the clean margin.
        """
        image = self.standing.nonzero().squeeze(1)
        if not len(image):
            return {"image": image, "target": image}
        logits = torch.cat([self.model(self.x[part]) for part in image.split(self.batch_size)])
        y = self.y[image]
        self.clean[image] = Margin().of(logits, y, y).nan_to_num(nan=0.0).to(self.clean)
        wrong = logits.scatter(1, y[:, None], -torch.inf)
        classes = wrong.topk(min(most, logits.shape[1] - 1), dim=1).indices
        return {
            "image": image.repeat_interleave(classes.shape[1]),
            "target": classes.reshape(-1),
        }

    def batches(self, rows: Rows) -> Iterator[Rows]:
        """Yield the rows whose image stands, a batch at a time."""
        while True:
            rows = selected(rows, self.standing[rows["image"]])
            if not len(rows["image"]):
                return
            yield selected(rows, slice(self.batch_size))
            rows = selected(rows, slice(self.batch_size, None))

    def climb(
        self,
        attack: IterativeAttack,
        rows: Rows,
        *,
        resumes: bool = False,
        counts: bool = False,
        slack: float | None = None,
    ) -> Rows:
        """Run an attack on at most a batch of rows, and return them with what they reached.

        A row leaves when its image is broken, and when its first gradients are all exactly zero:
        it would stay where it is.

        Args:
            attack: What to run.
            rows: "image" and "target", and "point" to resume.
            resumes: Start from the rows' points.
            counts: Note the images whose rows leave for want of a gradient, or have none in half of
                the queries, as flat.
            slack: None lets every row ask all its queries. Otherwise a row leaves after a twelfth,
                a sixth, a third or half of them, unless three quarters of the gain of the half of
                those asked last, for each doubling that is left, leave at most this share of the
                clean margin.
        """
        image = rows["image"]
        run = _Run(self.x[image])
        zero = torch.zeros_like(image)
        stuck = zero > 0
        state = attack.begin(self._state(rows), self.generator)
        if resumes:
            state |= dict.fromkeys(("iterate", "previous", "best"), rows["point"])
        alive = torch.arange(len(image), device=image.device)
        reviews = {attack.iterations // share for share in _REVIEWS} if slack is not None else set()
        for asked in range(1, attack.iterations + 1):
            query = attack.query(state)
            logits, gradient = self._ask(attack, state, query)
            inside = attack.within(state, query)
            inside = torch.ones_like(alive, dtype=torch.bool) if inside is None else inside
            run.note(alive, query, Margin().of(logits, state["y"], state["y"]), inside)
            self._keep(image[alive], state["y"], query, logits, inside)
            if gradient is not None:
                zero[alive] += (gradient == 0).flatten(1).all(1)
            state = attack.advance(state, logits, gradient, self.generator)
            goes_on = self.standing[image[alive]]
            if asked == _STUCK:
                stuck = zero == _STUCK
                goes_on &= ~stuck[alive]
            if asked in reviews:
                doublings = math.log2(attack.iterations / asked)
                goes_on &= self._within_reach(rows, run, doublings, slack or 0.0)[alive]
            left = goes_on.nonzero().squeeze(1)
            if len(left) < len(alive):
                alive, state = alive[left], {name: value[left] for name, value in state.items()}
            if not len(alive):
                break
        self.margin.scatter_reduce_(0, image, run.best, "amax")
        if counts:
            self.flat[image[(2 * zero >= attack.iterations) | stuck]] = True
        return rows | {"point": run.point, "best": run.best, "half": run.half()}

    def _within_reach(self, rows: Rows, run: _Run, doublings: float, slack: float) -> Tensor:
        """Return which rows may still reach zero with so many times the queries asked, (rows,)."""
        gain = (run.best - run.half()).nan_to_num(nan=0.0)
        return run.best + _PROMISE * doublings * gain + slack * self.clean[rows["image"]].abs() >= 0

    def adopt(self, index: Tensor, attack: IterativeAttack) -> None:
        """Run an attack on these images, (m,), and keep what it breaks."""
        settings = {"batch_size": self.batch_size, "generator": self.generator}
        found = run_rows(attack, self.model, self.x[index], self.y[index], **settings)
        changed = (found != self.x[index]).flatten(1).any(1)
        self.found[index[changed]] = found[changed]
        self.standing[index[changed]] = False

    def _state(self, rows: Rows) -> State:
        image = rows["image"]
        return {
            "x": self.x[image],
            "y": self.y[image],
            "target": rows["target"],
            "restart": torch.zeros_like(image),
        }

    def _ask(
        self, attack: IterativeAttack, state: State, query: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the query and, for an attack with a loss, its gradient."""
        if type(attack).loss is IterativeAttack.loss:
            return self.model(query), None

        def loss(logits: Tensor) -> Tensor:
            value = attack.loss(state, logits)
            assert value is not None
            return value

        gradient, logits = input_gradient(self.model, query, loss)
        return logits, gradient.nan_to_num(nan=0.0)

    def _keep(self, image: Tensor, y: Tensor, query: Tensor, logits: Tensor, ok: Tensor) -> None:
        """Keep the queries that are wrong or NaN: of several of one image, the first."""
        rows = (ok & ((logits.argmax(1) != y) | logits.isnan().any(1))).nonzero().squeeze(1)
        first = torch.full_like(self.y, len(image)).scatter_reduce(0, image[rows], rows, "amin")
        rows = rows[first[image[rows]] == rows]
        self.found[image[rows]] = query[rows]
        self.standing[image[rows]] = False


class _Run:
    """The best query of each row, and how its margin rose."""

    def __init__(self, x: Tensor):
        self.point = x.clone()
        self.best = x.new_full((len(x),), -torch.inf)
        self.history: list[Tensor] = []

    def note(self, rows: Tensor, query: Tensor, margin: Tensor, inside: Tensor) -> None:
        """Note the margins of the queries of some rows; those outside the ball do not count."""
        better = inside & (margin > self.best[rows])  # never for NaN
        self.point[rows[better]] = query[better]
        self.best[rows[better]] = margin[better].to(self.best)
        if bool(inside.any()):
            self.history.append(self.best.clone())

    def half(self) -> Tensor:
        """Return the greatest margins when half of the queries in the ball were asked, (rows,)."""
        return self.history[(len(self.history) - 1) // 2] if self.history else self.best


def selected(rows: Rows, which: Tensor | slice) -> Rows:
    """Return some of the rows, by mask, index or slice."""
    return {name: value[which] for name, value in rows.items()}


def joined(parts: list[Rows]) -> Rows:
    """Return the rows of all parts, of which there is at least one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
