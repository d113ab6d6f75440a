"""Defenses: how one batch becomes a loss."""

from multirobust.defenses.adversarial import (
    TRADES,
    AdversarialTraining,
    AverageTraining,
    Standard,
)
from multirobust.defenses.adversarial_noise import ANT
from multirobust.defenses.base import Defense, Loss
from multirobust.defenses.consistency import (
    ConsistencyTraining,
    ConsistencyViews,
    consistency_loss,
    jensen_shannon,
)
from multirobust.defenses.learned_noise import MNGAC
from multirobust.defenses.mixed import MixedTraining
from multirobust.defenses.noise_sources import GaussianNoise, NoiseSource, UniformNoise
from multirobust.defenses.ramp import RAMP, PairedViews, logit_pairing, mixed_update
from multirobust.defenses.table import DEFENSES, NEEDS_UNLABELED, batch_norm_during, build

__all__ = [
    "ANT",
    "DEFENSES",
    "MNGAC",
    "NEEDS_UNLABELED",
    "RAMP",
    "TRADES",
    "AdversarialTraining",
    "AverageTraining",
    "ConsistencyTraining",
    "ConsistencyViews",
    "Defense",
    "GaussianNoise",
    "Loss",
    "MixedTraining",
    "NoiseSource",
    "PairedViews",
    "Standard",
    "UniformNoise",
    "batch_norm_during",
    "build",
    "consistency_loss",
    "jensen_shannon",
    "logit_pairing",
    "mixed_update",
]
