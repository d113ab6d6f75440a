"""Samplers that choose an attack for each image of a batch, and what they learn from."""

from multirobust.attacks.choosing.cascade import Cascade
from multirobust.attacks.choosing.configured import mixed_attacks, sampler_from
from multirobust.attacks.choosing.drawing import DrawnSampler
from multirobust.attacks.choosing.excess import HedgeShares, UCBShares
from multirobust.attacks.choosing.race import Race
from multirobust.attacks.choosing.router import Router
from multirobust.attacks.choosing.sampler import Chosen, MixedSampler
from multirobust.attacks.choosing.shapley import ShapleyShares, shapley_values
from multirobust.attacks.choosing.shares import EqualShares, ErrorShares, Shares

__all__ = [
    "Cascade",
    "Chosen",
    "DrawnSampler",
    "EqualShares",
    "ErrorShares",
    "HedgeShares",
    "MixedSampler",
    "Race",
    "Router",
    "ShapleyShares",
    "Shares",
    "UCBShares",
    "mixed_attacks",
    "sampler_from",
    "shapley_values",
]
