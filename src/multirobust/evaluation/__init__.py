"""What every image went through, and the accuracies that follow from it."""

from multirobust.evaluation.intervals import Estimate, mean_and_std, wilson
from multirobust.evaluation.outcomes import AttackColumn, Outcomes, State
from multirobust.evaluation.storage import load, save

__all__ = [
    "AttackColumn",
    "Estimate",
    "Outcomes",
    "State",
    "load",
    "mean_and_std",
    "save",
    "wilson",
]
