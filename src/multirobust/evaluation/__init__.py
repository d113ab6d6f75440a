"""What every image went through, and the accuracies that follow from it."""

from multirobust.evaluation.evaluate import check_model, evaluate_suite
from multirobust.evaluation.intervals import Estimate, mean_and_std, wilson
from multirobust.evaluation.outcomes import AttackColumn, Outcomes, State
from multirobust.evaluation.storage import load, save
from multirobust.evaluation.suites import SUITES, NamedAttack, Suite, build_suite

__all__ = [
    "SUITES",
    "AttackColumn",
    "Estimate",
    "NamedAttack",
    "Outcomes",
    "State",
    "Suite",
    "build_suite",
    "check_model",
    "evaluate_suite",
    "load",
    "mean_and_std",
    "save",
    "wilson",
]
