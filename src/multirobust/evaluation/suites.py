"""The suites by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multirobust.config import EvaluationConfig
from multirobust.errors import lookup_error
from multirobust.evaluation.named import MODES, NamedAttack, Suite
from multirobust.evaluation.suites_beyond_norms import corruptions, spatial, unforeseen
from multirobust.evaluation.suites_in_norms import (
    autoattack,
    autoattack_rand,
    fast,
    paper,
    quick,
)
from multirobust.threats import Threat

__all__ = ["MODES", "SUITES", "NamedAttack", "Suite", "build_suite"]

SUITES: dict[str, Callable[[Mapping[str, Threat], EvaluationConfig], Suite]] = {
    "quick": lambda threats, config: quick(threats, config.attack),
    "fast": lambda threats, config: fast(threats),
    "autoattack": lambda threats, config: autoattack(threats),
    "autoattack_rand": lambda threats, config: autoattack_rand(threats),
    "paper": lambda threats, config: paper(threats, config.attack),
    "spatial": lambda threats, config: spatial(config.severities),
    "unforeseen": lambda threats, config: unforeseen(config.severities),
    "corruptions": lambda threats, config: corruptions(config.severities),
}


def build_suite(name: str, threats: Mapping[str, Threat], config: EvaluationConfig) -> Suite:
    """Return a suite by its name.

    Args:
        name: A name of `multirobust list suites`.
        threats: The balls, keyed "linf", "l2" and "l1".
        config: Steps, step sizes and restarts of PGD; severities of what is no norm.

    Raises:
        InputError: If the name or a severity is unknown.
    """
    if name not in SUITES:
        raise lookup_error("suite", name, SUITES)
    return SUITES[name](threats, config)
