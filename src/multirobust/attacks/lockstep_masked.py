"""Auto-PGD under an attack for each image, in shapes that do not depend on who has which attack.

Every attack moves all images, and each image keeps what its own attack does with it. The passes are
the same; what lies between them is done once an attack for the whole batch instead of once a group.
On an accelerator that is the same number of launches, and since no shape changes from batch to
batch they can be recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multirobust.attacks.base import input_gradient
from multirobust.attacks.lockstep_apgd import LockstepAPGD
from multirobust.attacks.lockstep_groups import Answer, Found, Group
from multirobust.types import Images, Labels

__all__ = ["run_masked"]


def run_masked(
    model: nn.Module,
    attacks: Sequence[LockstepAPGD],
    x: Images,
    y: Labels,
    index: Labels,
    start: Images | None = None,
    *,
    scored: bool = False,
) -> Found:
    """Return the strongest images of each image's attack, in the order of the batch.

    Costs T + 1 forward and T backward passes. An image gets what it would get in a group of its
    own attack, but for the rounding of what images of a batch have to do with each other in the
    model. Waits for nothing.

    Args:
        model: The model, lent to an attack.
        attacks: With the same number of steps, and objectives of the logits and labels alone.
        x: Clean images (b, c, h, w), detached, at least float32.
        y: True labels (b,).
        index: The attack of each image, by its place in `attacks`, (b,).
        start: Where each image starts, projected onto its threat; None starts at the clean images.
        scored: Whether margin and loss are wanted; NaN if not.
    """
    own = [index == number for number in range(len(attacks))]
    groups = [Group.at(attack, model, x, y, start, scored=scored) for attack in attacks]
    same = len({attack.objective for attack in attacks}) == 1

    def losses(logits: Tensor) -> Tensor:
        if same:
            return groups[0].loss(logits)
        return _merged([group.loss(logits) for group in groups], own)

    for step in range(attacks[0].steps):
        iterates = _merged([group.state["iterate"] for group in groups], own)
        gradient, logits = input_gradient(model, iterates, losses)
        answer = Answer(gradient, losses(logits), logits)
        groups = [group.moved(answer, step) for group in groups]
    logits = model(_merged([group.state["iterate"] for group in groups], own))
    found = [group.found(logits) for group in groups]
    return Found(*(_merged(parts, own) for parts in zip(*found, strict=True)))


def _merged(parts: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    """Return of each image the row of its own attack."""
    merged = parts[0]
    for part, rows in zip(parts[1:], own[1:], strict=True):
        merged = torch.where(rows.reshape(-1, *(1,) * (part.ndim - 1)), part, merged)
    return merged
