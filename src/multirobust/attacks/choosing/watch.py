"""Noticing that a sampler has stopped using one of its attacks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.ranks import rank

__all__ = ["Watch"]

_EVERY = 50
"""Batches from one look at the shares to the next; a look waits for the device."""

_RATE = 0.02
"""Share of the newest batch in the moving average of what each attack gets."""


@final
class Watch(nn.Module):
    """Warns once of an attack whose share of the images stays below half of its quota for long.

    Args:
        count: Number of attacks.
        patience: Batches for which a share is too small before the warning.
    """

    usage: Tensor

    def __init__(self, count: int, *, patience: int):
        super().__init__()
        self.patience = patience
        self.batches = 0
        self.below = [0] * count
        self.warned = False
        self.register_buffer("usage", torch.full((count,), 1 / count))

    @torch.no_grad()
    def note(self, seen: Tensor) -> None:
        """Hear how many images of a batch each attack had, (k,); does not wait for the device."""
        used = seen / seen.sum().clamp(min=1)
        self.usage.lerp_(used.to(self.usage.dtype), _RATE)

    def look(self, owner: str, names: Sequence[str], quotas: Sequence[float]) -> None:
        """Count a batch, and from time to time look whether an attack has been left out.

        Args:
            owner: Name of the sampler.
            names: Of the attacks.
            quotas: What shares they should have, about.
        """
        self.batches += 1
        if self.warned or self.batches % _EVERY:
            return
        shares = self.usage.tolist()
        for k, (share, quota) in enumerate(zip(shares, quotas, strict=True)):
            self.below[k] = self.below[k] + _EVERY if share < quota / 2 else 0
        starved = [k for k, batches in enumerate(self.below) if batches >= self.patience]
        if not starved:
            return
        self.warned = True
        told = ", ".join(f"{names[k]} has {shares[k]:.1%} for {quotas[k]:.1%}" for k in starved)
        if rank() == 0:
            warnings.warn(
                f"{owner} has all but left out an attack for {self.patience} batches: of the "
                f"images {told}. Raise defense.sampler_floor, or set defense.sampler_quotas.",
                stacklevel=3,
            )

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is counted."""
        return {"batches": self.batches, "below": list(self.below), "warned": self.warned}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned.

        Raises:
            ValueError: If it is anything else.
        """
        below = list(state["below"]) if isinstance(state, dict) else []
        if [type(count) for count in below] != [int] * len(self.below):
            raise ValueError("the counts of a sampler must be whole numbers, one for each attack")
        self.batches, self.below = int(state["batches"]), below
        self.warned = bool(state["warned"])
