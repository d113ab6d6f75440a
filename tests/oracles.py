"""References with a known answer, slow and in float64, for the tests to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["distance_in_float64", "project_by_bisection"]


def distance_in_float64(norm: str, x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the distance of each image in the named norm, computed in float64. Shape (b,)."""
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), ord=order, dim=1)


def project_by_bisection(norm: str, x_adv: Tensor, x: Tensor, radius: float) -> Tensor:
    """Return the closest point to x_adv of the ball around x within [0, 1], in float64.

    The displacement is clip(w / (1 + mu)) for l2 and clip(soft threshold of w by lam) for l1, by
    the Karush-Kuhn-Tucker conditions; the multiplier is found by 200 halvings of its range.
    """
    x_adv, x = x_adv.double().flatten(1), x.double().flatten(1)
    rows = [_project_row(norm, z - y, -y, 1 - y, radius) for z, y in zip(x_adv, x, strict=True)]
    return x + torch.stack(rows)


def _project_row(norm: str, w: Tensor, low: Tensor, high: Tensor, radius: float) -> Tensor:
    if norm == "linf":
        return w.clamp(-radius, radius).clamp(low, high)

    def shrunk(amount: float) -> Tensor:
        if norm == "l2":
            return (w * amount).clamp(low, high)
        return (w.sign() * (w.abs() - amount).clamp(min=0)).clamp(low, high)

    def length(delta: Tensor) -> float:
        return float(torch.linalg.vector_norm(delta, ord={"l2": 2, "l1": 1}[norm]))

    within, beyond = (0.0, 1.0) if norm == "l2" else (float(w.abs().max()), 0.0)
    if length(shrunk(beyond)) <= radius:
        return shrunk(beyond)
    for _ in range(200):
        middle = (within + beyond) / 2
        if length(shrunk(middle)) <= radius:
            within = middle
        else:
            beyond = middle
    return shrunk(within)
