"""Attacks: frozen values that map `(model, x, y)` to adversarial images."""

from multirobust.attacks.apgd import APGD
from multirobust.attacks.base import Attack, Restarts, WorstCase, attacking, input_gradient
from multirobust.attacks.brendel_bethge import BrendelBethge
from multirobust.attacks.configured import attacks_from, threats_from
from multirobust.attacks.corruptions import Corruption
from multirobust.attacks.engine import IterativeAttack, run_rows
from multirobust.attacks.fab import FAB
from multirobust.attacks.from_foolbox import CarliniWagner, ElasticNet, SaltAndPepper
from multirobust.attacks.lockstep_apgd import LockstepAPGD
from multirobust.attacks.mixed_apgd import MixedAPGD
from multirobust.attacks.objectives import (
    DLR,
    CrossEntropy,
    KLDivergence,
    LogitObjective,
    Margin,
    Objective,
    TargetedDLR,
)
from multirobust.attacks.parametric import ParametricAttack
from multirobust.attacks.passes import PassMeter
from multirobust.attacks.pgd import MSD, PGD
from multirobust.attacks.projected import Projected
from multirobust.attacks.recolor import ReColor
from multirobust.attacks.sampling import Always, ErrorSampler, Sampler, UniformSampler
from multirobust.attacks.spatial import SpatialGradient, SpatialGrid, SpatialRandom
from multirobust.attacks.square import Square
from multirobust.attacks.stadv import StAdv
from multirobust.attacks.stored import StoredImages
from multirobust.attacks.tournament import Round, Tournament
from multirobust.attacks.unforeseen import JPEGL1, JPEGL2, Elastic, Fog, Gabor, JPEGLinf, Snow

__all__ = [
    "APGD",
    "DLR",
    "FAB",
    "JPEGL1",
    "JPEGL2",
    "MSD",
    "PGD",
    "Always",
    "Attack",
    "BrendelBethge",
    "CarliniWagner",
    "Corruption",
    "CrossEntropy",
    "Elastic",
    "ElasticNet",
    "ErrorSampler",
    "Fog",
    "Gabor",
    "IterativeAttack",
    "JPEGLinf",
    "KLDivergence",
    "LockstepAPGD",
    "LogitObjective",
    "Margin",
    "MixedAPGD",
    "Objective",
    "ParametricAttack",
    "PassMeter",
    "Projected",
    "ReColor",
    "Restarts",
    "Round",
    "SaltAndPepper",
    "Sampler",
    "Snow",
    "SpatialGradient",
    "SpatialGrid",
    "SpatialRandom",
    "Square",
    "StAdv",
    "StoredImages",
    "TargetedDLR",
    "Tournament",
    "UniformSampler",
    "WorstCase",
    "attacking",
    "attacks_from",
    "input_gradient",
    "run_rows",
    "threats_from",
]
