"""Attacks: frozen values that map `(model, x, y)` to adversarial images."""

from multirobust.attacks.base import Attack, Restarts, WorstCase, attacking, input_gradient
from multirobust.attacks.configured import attacks_from, threats_from
from multirobust.attacks.objectives import CrossEntropy, KLDivergence, Margin, Objective
from multirobust.attacks.passes import PassMeter
from multirobust.attacks.pgd import MSD, PGD
from multirobust.attacks.sampling import Always, Sampler, UniformSampler

__all__ = [
    "MSD",
    "PGD",
    "Always",
    "Attack",
    "CrossEntropy",
    "KLDivergence",
    "Margin",
    "Objective",
    "PassMeter",
    "Restarts",
    "Sampler",
    "UniformSampler",
    "WorstCase",
    "attacking",
    "attacks_from",
    "input_gradient",
    "threats_from",
]
