"""Which attack the union of all owes its broken images to: Shapley values of a coverage game."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from multirobust.attacks.choosing.shares import Shares, in_open
from multirobust.errors import InputError

__all__ = ["ShapleyShares", "shapley_values"]


def shapley_values(broken: Tensor) -> Tensor:
    """Return the Shapley value of each attack in the game whose worth is what a set breaks.

    An image that m attacks break counts 1 / m for each of them: which of them comes first, and so
    adds it to the union, is a fair draw. The values add up to the images that any attack breaks.

    Args:
        broken: Whether each attack breaks each image, (n, k), bool.

    Returns:
        Sums over the images, (k,), float64.

    >>> shapley_values(torch.tensor([[True, True], [True, False], [False, False]])).tolist()
    [1.5, 0.5]
    """
    hits = broken.double()
    return (hits / hits.sum(1, keepdim=True).clamp(min=1)).sum(0)


@final
class ShapleyShares(Shares):
    """w_k = the moving average of the Shapley value of attack k in the union, from probes.

    Every so many steps all attacks are tried on some images. Nested attacks share what they both
    break, so that the weaker of two is not left out, and an attack that alone breaks an image gets
    all of it. Uniform until the first probe.

    A probe costs the passes of all attacks on its images: on average k T B_p / (every B) a step.

    Args:
        count: Number of attacks.
        every: Steps from one probe to the next.
        images: The first so many of the batch are probed; None probes all.
        rate: Share of the moving average that the newest probe gets, in (0, 1].
        floor: See `Shares`.

    Raises:
        InputError: If a number is out of range.
    """

    values: Tensor

    def __init__(
        self,
        count: int,
        *,
        every: int = 50,
        images: int | None = None,
        rate: float = 0.3,
        floor: float = 0.15,
    ):
        super().__init__(count, floor=floor)
        for name, value in (("every", every), ("images", images)):
            if value is not None and value < 1:
                raise InputError(f"ShapleyShares: {name} must be at least 1, got {value!r}.")
        in_open("ShapleyShares", "rate", rate)
        self.every, self.images, self.rate = every, images, rate
        self.steps = 0
        self.register_buffer("values", torch.zeros(count))

    def weights(self) -> list[float]:
        """See `Shares.weights`."""
        return self.values.double().tolist()

    def probe(self) -> int:
        """See `Shares.probe`."""
        due, self.steps = self.steps % self.every == 0, self.steps + 1
        if not due:
            return 0
        return self.images if self.images is not None else 2**62

    @torch.no_grad()
    def observe_probe(self, values: Tensor, images: Tensor) -> None:
        """See `Shares.observe_probe`."""
        rate = self.rate * (images > 0)
        self.values.add_(rate * (values / images.clamp(min=1) - self.values))

    def get_extra_state(self) -> dict[str, Any]:
        """Return how many steps there were."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self.steps = int(state["steps"])
