"""Means of the loss terms, kept on the device until they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["Averages"]


@final
class Averages:
    """Means of named scalars over the steps since the last reset.

    Adding never waits for the device. A term that some steps lack is averaged over the steps that
    have it. Sums are float64 and part of the checkpoint, so that a resumed run writes the same
    digits.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Count one step with its terms."""
        self.steps += 1
        for name, value in terms.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the mean of each term; waits for the device, once."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values())).tolist()
        return {
            name: total / self._counts[name] for name, total in zip(self._sums, sums, strict=True)
        }

    def reset(self) -> None:
        """Forget the steps."""
        self.steps = 0
        self._sums, self._counts = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {"steps": self.steps, "sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned; the sums go to the device.

        Raises:
            ValueError: If it holds anything else than sums and counts.
        """
        counts = [state["steps"], *state["counts"].values()]
        whole = all(type(count) is int and 0 <= count <= state["steps"] for count in counts)
        scalar = all(
            value.shape == () and value.is_floating_point() for value in state["sums"].values()
        )
        if not whole or not scalar or state["sums"].keys() != state["counts"].keys():
            raise ValueError("its averages are no sums with their counts")
        self.steps = state["steps"]
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
