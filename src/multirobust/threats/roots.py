"""The scalar equations behind the l2 and l1 projections: one unknown for each image.

All functions here run without gradient and read nothing back from an accelerator. The unknowns are
float64 numbers of shape (b, 1), whatever the dtype of the images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["minus", "positive", "scale_for_l2", "threshold_by_sorting", "threshold_for_l1"]

_MOST_STEPS = 16
"""Limit of the search. Weights over twenty decades took 11 steps in l2; l1 falls back to a sort."""


@torch.no_grad()
def scale_for_l2(squares: Tensor, caps: Tensor, largest: Tensor, done: Tensor) -> Tensor:
    """Solve sum min(s squares, caps) = 1 for s in (0, largest]: concave and increasing in s.

    Newton's method from the left never overshoots, so that every iterate is a feasible scale.

    Args:
        squares: Squared displacements, (b, n), with 1 as the largest of each image.
        caps: Squared bounds, (b, n), in units of the squared radius.
        largest: Upper end of s, (b, 1).
        done: Images that need no solution, (b, 1).

    Returns:
        s, (b, 1).
    """

    def newton(s: Tensor) -> tuple[Tensor, Tensor]:
        grown = squares * s.to(squares.dtype)
        gap = torch.minimum(grown, caps).sum(1, keepdim=True) - 1
        free = (caps - grown).sign_().clamp(min=0)  # faster than a comparison
        slope = free.mul_(squares).sum(1, keepdim=True)
        return gap, s - gap / positive(slope)

    first = 1 / positive(squares.sum(1, keepdim=True))
    return _search(newton, first, torch.maximum(largest, first), done)[0]


@torch.no_grad()
def threshold_for_l1(sizes: Tensor, caps: Tensor, r: Tensor, done: Tensor) -> Tensor:
    """Solve sum clip(sizes - lam, 0, caps) = r for lam >= 0: decreasing, not convex.

    On a CPU a search, which ends after a few passes where few caps bind, and a sort for the images
    that it leaves open. On an accelerator, where asking whether a search has ended costs more than
    the sort, the sort alone.

    Args:
        sizes: Absolute displacements, (b, n).
        caps: Bounds of the result, (b, n), in [0, 1].
        r: Radius, (b, 1) or (1, 1).
        done: Images that need no solution, (b, 1).

    Returns:
        lam, (b, 1).
    """

    def newton(lam: Tensor) -> tuple[Tensor, Tensor]:
        kept = torch.minimum(minus(sizes, lam).clamp(min=0), caps)
        ratio = kept.sum(1, keepdim=True) / r
        free = (caps - kept).mul_(kept).sign_()  # 0 < kept < cap
        slope = free.sum(1, keepdim=True) / r
        # far from the root the sum falls off rather like an exponential
        drop = torch.where(ratio > 2, ratio * ratio.log(), ratio - 1)
        return 1 - ratio, lam + drop / positive(slope)

    if sizes.device.type != "cpu":
        return threshold_by_sorting(sizes, caps, r)
    peak = sizes.amax(1, keepdim=True)
    lam, done = _search(newton, torch.zeros_like(peak), peak, done)
    if _all(done):
        return lam
    return torch.where(done, lam, threshold_by_sorting(sizes, caps, r))


def threshold_by_sorting(sizes: Tensor, caps: Tensor, r: Tensor) -> Tensor:
    """Solve the equation of `threshold_for_l1` with one sort of its 2 n breakpoints.

    From the largest size down, the slope of the sum grows by 1 at each size, where a coordinate
    starts to count, and falls by 1 at each size - cap, where it is full. Between two breakpoints
    the sum is linear.
    """
    high = sizes.double()
    points = torch.cat([high, high - caps], dim=1)
    points, order = points.sort(dim=1, descending=True)
    slopes = torch.where(order < sizes.shape[1], 1.0, -1.0).double().cumsum(1)
    gains = slopes[:, :-1] * (points[:, :-1] - points[:, 1:])
    sums = torch.cat([torch.zeros_like(points[:, :1]), gains.cumsum(1)], dim=1)
    piece = (sums < r).sum(1, keepdim=True).clamp(min=1) - 1
    rest = r - sums.gather(1, piece)
    return (points.gather(1, piece) - rest / slopes.gather(1, piece).clamp(min=1)).clamp(min=0)


def _search(
    newton: Callable[[Tensor], tuple[Tensor, Tensor]], lower: Tensor, upper: Tensor, done: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve gap(z) = 0 for each image, with gap increasing and piecewise linear in z >= 0.

    Newton's method from both ends of a bracket, secured by bisection: wherever a step did not halve
    the gap, and wherever Newton leaves the bracket.

    Args:
        newton: Returns the gap at z, in units of the target, and a guess of the root, (b, 1).
        lower: Where the search starts; here gap <= 0. Shape (b, 1).
        upper: Here gap >= 0. Shape (b, 1).
        done: Images that need no root, (b, 1).

    Returns:
        The root, (b, 1), or the lower end of the last bracket; and which images have a root.
    """
    tolerance = 16 * torch.finfo(lower.dtype).eps
    z = lower = from_lower = lower.double()
    upper = from_upper = upper.double()
    last = torch.full_like(z, torch.inf)
    for _ in range(_MOST_STEPS):
        gap, guess = newton(z)
        done = done | (gap.abs() <= tolerance) | gap.isnan()
        if _all(done):
            break
        below, fast = gap < 0, gap.abs() <= last / 2
        lower, upper = torch.where(below, z, lower), torch.where(below, upper, z)
        from_lower = torch.where(below, guess, from_lower)
        from_upper = torch.where(below, from_upper, guess)
        following = _middle(lower, upper)
        for option in (torch.where(below, from_upper, from_lower), guess):
            within = (option > lower) & (option < upper)
            following = torch.where(fast & within, option, following)
        last = torch.where(fast, gap.abs(), torch.inf)
        z = torch.where(done, z, following)
    return torch.where(done, z, lower), done


def _all(done: Tensor) -> bool:
    """Tell whether all images are done, where asking costs nothing: on a plain CPU tensor.

    An image that is done keeps its root, so that stopping early changes no bit of the result.
    """
    if done.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    try:
        return bool(done.all())
    except RuntimeError:  # under a tracer or vmap a tensor has no value to ask for
        return False


def _middle(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the float64 value halfway between two that are not negative: halfway in count.

    Counted in floating-point values, so that a root many decades below is found as fast as another;
    down to upper / 2^32 at a time, as a lower end of 0 is a thousand octaves away.
    """
    first, last = lower.view(torch.int64), upper.view(torch.int64)
    return (last - (last - first).clamp(max=32 << 52) // 2).view(torch.float64)


def minus(a: Tensor, lam: Tensor) -> Tensor:
    """Return a - lam for lam in float64, without rounding lam to the dtype of a.

    The difference is accurate however small it is beside a.
    """
    head = lam.to(a.dtype)
    return (a - head) - (lam - head).to(a.dtype)


def positive(divisor: Tensor) -> Tensor:
    """Return the divisor with 1 for 0, for a quotient whose dividend is 0 as well. NaN stays."""
    return torch.where(divisor == 0, 1, divisor)
