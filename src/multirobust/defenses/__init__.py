"""Defenses: how one batch becomes a loss."""

from multirobust.defenses.adversarial import (
    TRADES,
    AdversarialTraining,
    AverageTraining,
    Standard,
)
from multirobust.defenses.base import Defense, Loss
from multirobust.defenses.consistency import (
    ConsistencyTraining,
    ConsistencyViews,
    consistency_loss,
    jensen_shannon,
)
from multirobust.defenses.learned_noise import ANT, MNGAC
from multirobust.defenses.table import DEFENSES, build

__all__ = [
    "ANT",
    "DEFENSES",
    "MNGAC",
    "TRADES",
    "AdversarialTraining",
    "AverageTraining",
    "ConsistencyTraining",
    "ConsistencyViews",
    "Defense",
    "Loss",
    "Standard",
    "build",
    "consistency_loss",
    "jensen_shannon",
]
