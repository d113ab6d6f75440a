"""At which scale a table or figure is made: the data, the network, and their base recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from multirobust.config import Recipe, load_recipe
from multirobust.errors import lookup_error

__all__ = ["DATA", "Scale", "scale_of"]


@final
@dataclass(frozen=True)
class Scale:
    """A base recipe and how it is changed.

    Args:
        data: The data set.
        model: The network.
        recipe: Name of the base recipe.
        changes: Its overrides, as in `load_recipe`.
    """

    data: str
    model: str
    recipe: str
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Data set and network, such as "digits-small_cnn"."""
        return f"{self.data}-{self.model}"

    def build(self, overrides: Sequence[str] = ()) -> Recipe:
        """Return the base recipe with the changes of the scale and then the overrides."""
        return load_recipe(self.recipe, [*self.changes, *overrides])


DATA = {
    "digits": ("small_cnn", "digits"),
    "cifar10": ("wrn_28_10", "cifar10"),
    "svhn": ("wrn_28_10", "svhn"),
    "tinyimagenet": ("preact_resnet_50", "tinyimagenet"),
}
"""For each data set, the network of the paper (a small one on digits) and the base recipe."""

_OTHER = {
    ("digits", "small_cnn"): ("digits", ("training.epochs=20",)),
    ("cifar10", "small_cnn"): ("cifar10_small", ()),
}
"""Scales whose base recipe has more of its own than the network."""


def scale_of(data: str, model: str | None = None) -> Scale:
    """Return the scale of a data set and a network.

    Args:
        data: A key of `DATA`.
        model: A name of `multirobust list models`; None takes that of the paper, or a small one
            for the digits.

    Raises:
        InputError: If the data set is not one of the paper's or the digits.
    """
    if data not in DATA:
        raise lookup_error("data set of a reproduction", data, DATA)
    usual, recipe = DATA[data]
    model = model or usual
    if (data, model) in _OTHER:
        return Scale(data, model, *_OTHER[data, model])
    changes = () if model == usual else (f"model.name={model!r}",)
    return Scale(data, model, recipe, changes)
