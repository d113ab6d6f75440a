"""The fast adaptive boundary attack, targeted: walks along the boundary to its closest point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from multirobust.attacks.engine import IterativeAttack, State
from multirobust.attacks.objectives import Margin, at_least_float32
from multirobust.errors import InputError, lookup_error
from multirobust.threats.roots import positive, scale_for_l2
from multirobust.types import Images, Logits, PerImage

__all__ = ["FAB", "step_to_hyperplane"]


@final
@dataclass(frozen=True, kw_only=True)
class FAB(IterativeAttack):
    """Fast adaptive boundary attack (FAB-T): looks for the adversarial image of least distance.

    The radius only decides when to stop. At each query the boundary to the target class is taken
    for the plane that the gradient says. The next query mixes the closest points of that plane to
    the current image and to the clean one, a little beyond the plane. From an image that fools the
    model it first goes back toward the clean one. The last queries search the line from the clean
    image to the best one found.

    As every query yields the prediction and the gradient, an image that fools the model lends its
    plane to the image behind it. The authors linearize once more there, for a second forward pass.

    Args:
        threat: Linf, L2 or L1; the norm of the distance, and the radius within which to stop.
        iterations: Queries of each row.
        targets: Wrong classes to go for, at least 1.
        restarts: How often each row is tried, first from x, then at random within half the radius.
        alpha_max: Greatest weight of the step from the clean image, in [0, 1].
        eta: How far steps go, 1 is up to the plane; at least 1.
        beta: Share of the distance that is kept when going back, in (0, 1].
        search: How many of the queries the line search has; 0 for none, as in AutoAttack.

    References: Croce and Hein, Minimally distorted adversarial examples with a fast adaptive
    boundary attack, ICML 2020; its targeted version: Croce and Hein, Reliable evaluation of
    adversarial robustness with an ensemble of diverse parameter-free attacks, ICML 2020.
    """

    iterations: int = 100
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    search: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat.norm not in _DISPLACEMENTS:
            raise lookup_error("norm of FAB", self.threat.norm, _DISPLACEMENTS)
        rules = {
            "targets": (self.targets >= 1, "at least 1: the attack needs a class to go for"),
            "alpha_max": (0 <= self.alpha_max <= 1, "in [0, 1]; the authors use 0.1"),
            "eta": (1 <= self.eta < float("inf"), "finite and at least 1; the authors use 1.05"),
            "beta": (0 < self.beta <= 1, "in (0, 1]; the authors use 0.9"),
            "search": (self.search >= 0, "0 or more; 3 are enough"),
        }
        for name, (kept, rule) in rules.items():
            if not kept:
                raise InputError(f"FAB: {name} must be {rule}, got {getattr(self, name)!r}.")

    def begin(self, state: State, generator: torch.Generator) -> State:
        """See `IterativeAttack.begin`.

        Adds "point", the next query; "best", the closest adversarial image, and its "distance";
        "low" and "high", the bracket of the search; and "step", the number of queries.
        """
        x = state["x"]
        point = x
        if self.restarts > 1:
            middle = x + (self.threat.sample(x, generator).to(x) - x) / 2
            point = torch.where(_rows(state["restart"] > 0), middle, x)
        zero = x.new_zeros(len(x))
        unknown = torch.stack((zero, zero + torch.nan), dim=1)
        return state | {
            "point": point,
            "best": x,
            "distance": zero + torch.inf,
            "low": unknown,
            "high": unknown,
            "step": torch.zeros_like(state["y"]),
        }

    def query(self, state: State) -> Images:
        """See `IterativeAttack.query`."""
        return state["point"]

    def within(self, state: State, query: Images) -> Tensor:
        """See `IterativeAttack.within`. Measured in float64."""
        return self.threat.distance(query.double(), state["x"].double()) <= self.threat.radius

    def loss(self, state: State, logits: Logits) -> PerImage:
        """Return the logit of the target class minus that of the true one, (b,)."""
        classes = torch.stack((state["target"], state["y"]), dim=1)
        target, true = at_least_float32(logits).gather(1, classes).unbind(1)
        return target - true

    def advance(
        self, state: State, logits: Tensor, gradient: Tensor | None, generator: torch.Generator
    ) -> State:
        """See `IterativeAttack.advance`."""
        assert gradient is not None
        fooled = logits.argmax(1) != state["y"]
        walked = self._walk(state, self.loss(state, logits), gradient, fooled)
        state = self._remember(state, logits, fooled)
        state["step"] = state["step"] + 1
        on_line = state["x"] + _rows(_secant(state)) * (state["best"] - state["x"])
        state["point"] = torch.where(_rows(self._searches(state)), on_line.clamp(0, 1), walked)
        return state

    def _searches(self, state: State) -> Tensor:
        """Tell which rows ask for a point of the line: in the last queries, given a best image."""
        return (state["step"] >= self.iterations - self.search) & state["distance"].isfinite()

    def _walk(self, state: State, value: Tensor, gradient: Tensor, fooled: Tensor) -> Tensor:
        """Return the next image by the plane value + gradient (z - point) = 0."""
        x, point = state["x"], state["point"]
        start = torch.where(_rows(fooled), x + self.beta * (point - x), point)
        value = value.to(point.dtype).nan_to_num(nan=0.0)
        normal = gradient.to(point.dtype).flatten(1)
        peak = positive(normal.abs().amax(1, keepdim=True))
        normal = normal / peak  # the sum below cannot overflow
        both = torch.stack((start, x)).flatten(2)
        values = value / peak.squeeze(1) + (normal * (both - point.flatten(1))).sum(2)
        displacements = step_to_hyperplane(
            self.threat.norm, both.flatten(0, 1), normal.repeat(2, 1), values.flatten()
        ).reshape(2, *x.shape)
        zero = torch.zeros_like(x)
        near, far = (self.threat.distance(d, zero).clamp(min=1e-8) for d in displacements)
        alpha = _rows((near / (near + far)).clamp(max=self.alpha_max))
        from_start, from_x = both.reshape(2, *x.shape) + self.eta * displacements
        return ((1 - alpha) * from_start + alpha * from_x).clamp(0, 1)

    def _remember(self, state: State, logits: Tensor, fooled: Tensor) -> State:
        """Return the state with the best image and the bracket as the answer changes them."""
        margin = Margin().of(logits, state["y"], state["target"])
        searched = self._searches(state)
        distance = self.threat.distance(state["point"], state["x"]).to(state["distance"])
        closer = fooled & ~searched & (distance < state["distance"])
        clean = (state["step"] == 0) & (state["restart"] == 0)
        share = torch.where(searched, _secant(state), closer.to(margin.dtype))
        end = torch.stack((share, margin), dim=1).to(state["low"])
        low = (searched & ~fooled) | clean
        high = (searched & fooled) | closer
        return state | {
            "best": torch.where(_rows(closer), state["point"], state["best"]),
            "distance": torch.where(closer, distance, state["distance"]),
            "low": torch.where(low[:, None], end, state["low"]),
            "high": torch.where(high[:, None], end, state["high"]),
        }


def step_to_hyperplane(norm: str, x: Tensor, normal: Tensor, value: Tensor) -> Tensor:
    """Return the smallest displacement that brings each x onto a plane and stays in the box.

    argmin ||d|| subject to value + <normal, d> = 0 and 0 <= x + d <= 1. If the plane does not cross
    the box, the displacement to the point of the box closest to the plane, with the coordinates
    left alone to which the plane is parallel. Reads nothing back from an accelerator.

    Only coordinates that lead toward the plane move. With a = |normal|, c the room that the box
    leaves and g = |value|, they move by u in [0, c] with sum a u = g (the conditions of
    Karush, Kuhn and Tucker):

        linf    u = min(t, c)        sum a min(t, c) = g
        l2      u = min(t a, c)      sum a min(t a, c) = g
        l1      u = c for the largest a, the last of them in part, 0 for the others

    Args:
        norm: "linf", "l2" or "l1".
        x: Points in [0, 1], (b, n), float.
        normal: Finite gradients, (b, n).
        value: The linear function at x, (b,).

    Returns:
        Displacements, (b, n); zero where the normal is zero.
    """
    peak = positive(normal.abs().amax(1, keepdim=True))
    slope = normal / peak * -value.sign()[:, None]
    rise, steepness = value.abs()[:, None] / peak, slope.abs()
    room = torch.where(slope > 0, 1 - x, x) * slope.sign().abs()
    return slope.sign() * _DISPLACEMENTS[norm](steepness, room, rise)


def _even(a: Tensor, c: Tensor, g: Tensor) -> Tensor:
    return _at_one_rate(a, torch.ones_like(a), c, g)


def _proportional(a: Tensor, c: Tensor, g: Tensor) -> Tensor:
    return _at_one_rate(a, a, c, g)


def _at_one_rate(a: Tensor, rate: Tensor, c: Tensor, g: Tensor) -> Tensor:
    """Return u = min(t rate, c) with sum a u = g, or c where that does not reach g.

    In units of g this is the equation of `scale_for_l2`: sum min(s a rate, a c / g) = 1, s = t / g.
    """
    reached = g < (a * c).sum(1, keepdim=True)
    gains, caps = a * rate, a * c / positive(g)
    largest = (caps / positive(gains)).amax(1, keepdim=True)
    s = scale_for_l2(gains, caps, largest, ~reached | (g < _TINY))
    return torch.where(reached, torch.minimum((s * g).to(a.dtype) * rate, c), c)


def _steepest_first(a: Tensor, c: Tensor, g: Tensor) -> Tensor:
    """Return u that fills the coordinates of largest a up to c until sum a u = g."""
    a, order = a.sort(dim=1, descending=True)
    c = c.gather(1, order)
    spent = F.pad((a * c).cumsum(1, dtype=torch.float64), (1, 0))[:, :-1]
    u = torch.minimum(((g - spent).clamp(min=0) / positive(a)).to(c.dtype), c)
    return torch.zeros_like(u).scatter(1, order, u)


_BEYOND = 0.05
"""How much of the rest of the bracket the line search goes past where it expects the boundary."""

_TINY = 1e-30
"""A rise below this fills no coordinate, so that the first guess of the root is the root."""

_DISPLACEMENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linf": _even,
    "l2": _proportional,
    "l1": _steepest_first,
}


def _rows(values: Tensor) -> Tensor:
    """Return (b,) as (b, 1, 1, 1)."""
    return values[:, None, None, None]


def _secant(state: State) -> Tensor:
    """Return the next point of the line search, (b,), as a share of the way from clean to best.

    Where the margin, were it linear between the ends of the bracket, is zero, and from there a
    little toward the end that fools the model, so as not to fall short by rounding. The middle of
    the bracket if a margin is unknown.
    """
    (low, below), (high, above) = state["low"].unbind(1), state["high"].unbind(1)
    root = (below / (below - above)).nan_to_num(0.5, 0.5, 0.5).clamp(0, 1)
    return low + (high - low) * (root + _BEYOND * (1 - root))
