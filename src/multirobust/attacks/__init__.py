"""Attacks: frozen values that map `(model, x, y)` to adversarial images."""

from multirobust.attacks.apgd import APGD
from multirobust.attacks.base import Attack, Restarts, WorstCase, attacking, input_gradient
from multirobust.attacks.configured import attacks_from, threats_from
from multirobust.attacks.engine import IterativeAttack, run_rows
from multirobust.attacks.fab import FAB
from multirobust.attacks.objectives import (
    DLR,
    CrossEntropy,
    KLDivergence,
    LogitObjective,
    Margin,
    Objective,
    TargetedDLR,
)
from multirobust.attacks.passes import PassMeter
from multirobust.attacks.pgd import MSD, PGD
from multirobust.attacks.sampling import Always, Sampler, UniformSampler
from multirobust.attacks.square import Square

__all__ = [
    "APGD",
    "DLR",
    "FAB",
    "MSD",
    "PGD",
    "Always",
    "Attack",
    "CrossEntropy",
    "IterativeAttack",
    "KLDivergence",
    "LogitObjective",
    "Margin",
    "Objective",
    "PassMeter",
    "Restarts",
    "Sampler",
    "Square",
    "TargetedDLR",
    "UniformSampler",
    "WorstCase",
    "attacking",
    "attacks_from",
    "input_gradient",
    "run_rows",
    "threats_from",
]
