"""The attack of Brendel and Bethge, for whole batches: walks along the boundary toward x."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from multirobust.attacks.fab import step_to_hyperplane
from multirobust.attacks.minimum_norm import Finished, MinimumNorm, Queries, no_gradient
from multirobust.attacks.objectives import Margin
from multirobust.errors import InputError
from multirobust.threats.projection import project_l1, project_l2, project_linf
from multirobust.types import Images

__all__ = ["BrendelBethge"]


@final
@dataclass(frozen=True, kw_only=True)
class BrendelBethge(MinimumNorm):
    """Attack of Brendel and Bethge: from an adversarial image along the boundary toward x.

    The boundary is taken for the plane that the gradients of the margin say, averaged over the last
    queries. Each step goes to the point of that plane, of the box and of a trust region around the
    current point that is closest to x: to the closest point of plane and box where the trust region
    holds it, else toward it as far as the trust region goes. (In l2 that is the closest
    point wherever no pixel is at its bound; in linf and l1 it is a point that is closer than
    the current one.) Every step is one forward-backward pass.

    The defaults are those of foolbox 3.3.4, as the paper's code uses them. There the radius of the
    trust region is 1e-3 times the pixels of the whole batch, so that it grows with the batch. Here
    it is `reach` times the square root of the pixels of an image, which for one color image of
    32 x 32 pixels is the same, and which does for small images what it does for those.

    It starts from an adversarial image of any distance. Tried in turn for each image: the images of
    other classes in the batch, nearest first, uniform noise, noise of black and white pixels, its
    negative, and gray levels. An image without one comes back as NaN.

    Args:
        threat: Linf, L2 or L1.
        steps: Number of steps, at least 1.
        reach: Radius of the trust region at first, as root mean square over the pixels.
        decay: What that is multiplied by, twenty times in all.
        momentum: Weight of the past in the average of the gradients, in [0, 1).
        overshoot: How far a step goes beyond the plane, 1 is up to it; in [1, 2).
        bisections: Queries to find the boundary between the start and x.
        starts: How many other images, and how many draws of each kind of noise, are tried as a
            start, at least 1.

    References: Brendel, Rauber, Kümmerer, Ustyuzhaninov and Bethge, Accurate, reliable and fast
    robustness evaluation, NeurIPS 2019. Settings: Rauber et al., foolbox 3.3.4.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    steps: int = 1000
    reach: float = 0.0554
    decay: float = 0.5
    momentum: float = 0.8
    overshoot: float = 1.1
    bisections: int = 10
    starts: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "steps": (self.steps >= 1, "at least 1; the paper uses 1000"),
            "reach": (0 < self.reach < math.inf, "positive and finite; the paper uses 0.0554"),
            "decay": (0 < self.decay <= 1, "in (0, 1]; the paper uses 0.5"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1); the paper uses 0.8"),
            "overshoot": (1 <= self.overshoot < 2, "in [1, 2); the paper uses 1.1"),
            "bisections": (self.bisections >= 1, "at least 1; the paper uses 10"),
            "starts": (self.starts >= 1, "at least 1; 25 are enough"),
        }
        for name, (kept, rule) in rules.items():
            if not kept:
                raise InputError(
                    f"BrendelBethge: {name} must be {rule}, got {getattr(self, name)!r}."
                )

    def pursue(self, queries: Queries, generator: torch.Generator) -> None:
        """See `MinimumNorm.pursue`."""
        point = self._onto_boundary(queries, self._starting_points(queries, generator))
        normal = torch.zeros_like(point)
        keep = 0.0
        for step in range(self.steps):
            rows = _left(queries)
            value, gradient = _plane(queries, point[rows], rows)
            average = (1 - keep) * gradient + keep * normal[rows]
            keep = self.momentum
            normal = normal.index_copy(0, rows, average)
            moved = self._step(queries.x[rows], point[rows], average, value, step)
            point = point.index_copy(0, rows, moved)
        rows = _left(queries)
        queries.ask(point[rows], rows)

    def _starting_points(self, queries: Queries, generator: torch.Generator) -> Images:
        """Return an adversarial image for each open image; those without one fail."""
        starts, left = queries.x, queries.open
        for candidates in _candidates(queries, self.starts, generator):
            logits = queries.ask(candidates[left], left)
            fooled = logits.argmax(1) != queries.y[left]
            starts = starts.index_copy(0, left[fooled], candidates[left[fooled]])
            left = left[~fooled]
            if not len(left):
                break
        queries.fail(left)
        return starts

    def _onto_boundary(self, queries: Queries, starts: Images) -> Images:
        """Return, near the boundary, an adversarial image between each start and x.

        Between them means on the way of the projections onto balls that grow from x to the start.
        """
        x, project = queries.x, _PROJECTIONS[self.threat.norm]
        high = self.threat.distance(starts, x).to(x)
        low, points = torch.zeros_like(high), starts
        for _ in range(self.bisections):
            rows = _left(queries)
            middle = (low + high) / 2
            between = project(starts, x, middle[:, None, None, None])
            fooled = torch.zeros_like(high, dtype=torch.bool)
            fooled[rows] = queries.ask(between[rows], rows).argmax(1) != queries.y[rows]
            points = torch.where(fooled[:, None, None, None], between, points)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        return points

    def _step(self, x: Images, point: Images, normal: Images, value: Tensor, step: int) -> Images:
        """Return the next point of each image, for the plane value + normal (z - point) = 0."""
        decays = step // max(1, self.steps // _DECAYS)
        radius = self.reach * math.sqrt(x[0].numel()) * self.decay**decays
        clean, z, normal = x.flatten(1), point.flatten(1), normal.flatten(1)
        peak = normal.abs().amax(1, keepdim=True)
        normal = normal / torch.where(peak > 0, peak, 1)
        value = value / torch.where(peak > 0, peak, 1).squeeze(1)
        value = value * torch.where(value < 0, self.overshoot, 2 - self.overshoot)
        behind = value + (normal * (clean - z)).sum(1)
        near = step_to_hyperplane("l2", z, normal, value)
        far = clean - z + step_to_hyperplane(self.threat.norm, clean, normal, behind)
        delta = _within(near, far, radius)
        return (z + delta).clamp(0, 1).reshape(x.shape)


def _within(near: Tensor, far: Tensor, radius: float) -> Tensor:
    """Return the point from near to far, (b, n), that is as far along as the radius lets it.

    Where near is beyond the radius itself, near shortened to it.
    """
    way = far - near
    length = torch.linalg.vector_norm(near, dim=1, keepdim=True)
    a = way.square().sum(1, keepdim=True)
    b = (near * way).sum(1, keepdim=True)
    c = length.square() - radius**2
    root = (b.square() - a * c).clamp(min=0).sqrt()
    share = (root - b) / torch.where(a > 0, a, 1)
    shortened = near * (radius / length.clamp(min=radius))
    return torch.where(c < 0, near + share.clamp(0, 1) * way, shortened)


def _plane(queries: Queries, points: Images, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margin of the best wrong class at the points, and its gradient.

    Raises:
        InputError: If no gradient leads from the logits to the points.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        y = queries.y[rows]
        margin = Margin().of(queries.ask(points, rows), y, y)
        (gradient,) = torch.autograd.grad(margin.sum(), points, allow_unused=True)
    if gradient is None:
        raise no_gradient()
    return margin.detach().to(points), gradient


def _left(queries: Queries) -> Tensor:
    """Return the indices of the open images.

    Raises:
        Finished: If there are none.
    """
    rows = queries.open
    if not len(rows):
        raise Finished
    return rows


def _candidates(queries: Queries, times: int, generator: torch.Generator) -> Iterator[Images]:
    """Yield what may be adversarial, one image for each image of the batch at a time."""
    x, y = queries.x, queries.y
    draw = {"generator": generator, "dtype": x.dtype, "device": x.device}
    apart = torch.cdist(x.flatten(1), x.flatten(1)) + _HUGE * (y[:, None] == y)
    nearest = apart.argsort(dim=1)
    for rank in range(min(times, len(x) - 1)):
        yield x[nearest[:, rank]]
    for _ in range(times):
        yield torch.rand(x.shape, **draw)
    for _ in range(times):
        yield torch.rand(x.shape, **draw).round()
    yield 1 - x
    for level in range(11):
        yield torch.full_like(x, level / 10)


_DECAYS = 20
"""How often the trust region shrinks."""

_HUGE = 1e30
"""Puts the images of the same class behind all others."""

_PROJECTIONS = {"linf": project_linf, "l2": project_l2, "l1": project_l1}
