"""What every image went through, and the accuracies that follow from it."""

from multirobust.evaluation.audit import Finding, audit_model, audit_outcomes
from multirobust.evaluation.blocks import Shard
from multirobust.evaluation.classifier import check_classifier, check_model
from multirobust.evaluation.contributions import Contribution, contributions
from multirobust.evaluation.display import EvaluationDisplay, LiveDisplay, shown
from multirobust.evaluation.evaluate import evaluate_suite
from multirobust.evaluation.intervals import Estimate, mean_and_std, wilson
from multirobust.evaluation.merging import merge
from multirobust.evaluation.outcomes import AttackColumn, Outcomes
from multirobust.evaluation.paired import PairedComparison, mcnemar
from multirobust.evaluation.state import State
from multirobust.evaluation.storage import load, save
from multirobust.evaluation.suites import MODES, SUITES, NamedAttack, Suite, build_suite

__all__ = [
    "MODES",
    "SUITES",
    "AttackColumn",
    "Contribution",
    "Estimate",
    "EvaluationDisplay",
    "Finding",
    "LiveDisplay",
    "NamedAttack",
    "Outcomes",
    "PairedComparison",
    "Shard",
    "State",
    "Suite",
    "audit_model",
    "audit_outcomes",
    "build_suite",
    "check_classifier",
    "check_model",
    "contributions",
    "evaluate_suite",
    "load",
    "mcnemar",
    "mean_and_std",
    "merge",
    "save",
    "shown",
    "wilson",
]
