"""Samplers that draw the attack of each image, with probabilities that may learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final, get_args

import torch
from torch import nn

from multirobust.attacks.base import Attack
from multirobust.attacks.choosing.dealing import Mixing, dealt
from multirobust.attacks.choosing.sampler import Chosen, MixedSampler
from multirobust.attacks.choosing.shares import Shares
from multirobust.errors import lookup_error
from multirobust.ranks import Part
from multirobust.threats import Allotment
from multirobust.types import Images, Labels

__all__ = ["DrawnSampler"]


@final
class DrawnSampler(MixedSampler):
    """Draws the attack of each image; which attack an image gets does not depend on the image.

    Costs T + 1 forward and T backward passes, and what probes cost. With equal shares and mixing
    "batch" it is the uniform sampler of SAT (Eq. 5).

    Args:
        attacks: See `MixedSampler`.
        shares: How probable each attack is.
        mixing: "stratified": of each batch every attack gets its share, within one image;
            "independent": each image draws for itself; "batch": one attack for a whole batch.
        importance: Whether each image's loss is to be weighted by 1 / (k p): the loss is then an
            estimate of the mean over all attacks (Eq. 4) without bias.
        seed: See `MixedSampler`.
        patience: See `MixedSampler`.

    Raises:
        InputError: If the mixing is none of these.
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        shares: Shares,
        *,
        mixing: Mixing | str = "stratified",
        importance: bool = False,
        seed: int = 0,
        patience: int = 500,
    ):
        super().__init__(attacks, shares, seed=seed, patience=patience)
        if mixing not in get_args(Mixing):
            raise lookup_error("mixing", mixing, get_args(Mixing))
        self.mixing, self.importance = mixing, importance
        self._probabilities: list[float] = []
        self._dealt: list[int] = []

    def begin(self, place: Part) -> None:
        """See `MixedSampler.begin`."""
        self._probabilities = self.shares.probabilities()
        self._dealt = dealt(self._probabilities, place.total, self.mixing, self._random)

    def choose(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        place: Part,
        start: Images | None,
        generator: torch.Generator | None,
    ) -> Chosen:
        """See `MixedSampler.choose`."""
        own = self._dealt[place.start : place.stop]
        allotment = Allotment.of(own, self.count, x.device)
        x_adv = self.engine(model, x, y, allotment, start=start, generator=generator)
        weights = self._weights(allotment, self._probabilities, x)
        return Chosen(x_adv, allotment, weights, x.new_zeros((len(x), 0)))
