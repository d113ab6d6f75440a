"""What every image went through, and the accuracies that follow from it."""

from multirobust.evaluation.audit import Finding, audit_model, audit_outcomes
from multirobust.evaluation.blocks import Shard
from multirobust.evaluation.classifier import check_classifier, check_model
from multirobust.evaluation.contributions import Contribution, contributions
from multirobust.evaluation.course import Course, Part
from multirobust.evaluation.curve_attacks import CurveAttacks, Shortened
from multirobust.evaluation.curve_run import robustness_curve
from multirobust.evaluation.curves import Curves, load_curves, save_curves
from multirobust.evaluation.display import EvaluationDisplay, LiveDisplay, shown
from multirobust.evaluation.evaluate import Ahead, evaluate_suite
from multirobust.evaluation.intervals import (
    Difference,
    Estimate,
    difference_by_seed,
    mean_and_std,
    student_half,
    wilson,
)
from multirobust.evaluation.merging import merge
from multirobust.evaluation.outcomes import AttackColumn, Outcomes
from multirobust.evaluation.paired import PairedComparison, mcnemar
from multirobust.evaluation.state import State
from multirobust.evaluation.storage import load, save
from multirobust.evaluation.suites import MODES, SUITES, NamedAttack, Suite, build_suite

__all__ = [
    "MODES",
    "SUITES",
    "Ahead",
    "AttackColumn",
    "Contribution",
    "Course",
    "CurveAttacks",
    "Curves",
    "Difference",
    "Estimate",
    "EvaluationDisplay",
    "Finding",
    "LiveDisplay",
    "NamedAttack",
    "Outcomes",
    "PairedComparison",
    "Part",
    "Shard",
    "Shortened",
    "State",
    "Suite",
    "audit_model",
    "audit_outcomes",
    "build_suite",
    "check_classifier",
    "check_model",
    "contributions",
    "difference_by_seed",
    "evaluate_suite",
    "load",
    "load_curves",
    "mcnemar",
    "mean_and_std",
    "merge",
    "robustness_curve",
    "save",
    "save_curves",
    "shown",
    "student_half",
    "wilson",
]
