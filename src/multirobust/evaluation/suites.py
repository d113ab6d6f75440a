"""The suites by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multirobust.config import EvaluationConfig
from multirobust.data import Split
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

SUITES: dict[str, Callable[[Mapping[str, Threat], EvaluationConfig, Split | None], Suite]] = {
    "quick": lambda threats, config, split: quick(threats, config.attack),
    "fast": lambda threats, config, split: fast(threats),
    "autoattack": lambda threats, config, split: autoattack(threats),
    "autoattack_rand": lambda threats, config, split: autoattack_rand(threats),
    "paper": lambda threats, config, split: paper(threats, config.attack),
    "spatial": lambda threats, config, split: spatial(config.severities),
    "unforeseen": lambda threats, config, split: unforeseen(config.severities),
    "corruptions": lambda threats, config, split: corruptions(
        config.severities, folder=config.corruptions, split=split
    ),
}


def build_suite(
    name: str,
    threats: Mapping[str, Threat],
    config: EvaluationConfig,
    split: Split | None = None,
) -> Suite:
    """Return a suite by its name.

    Args:
        name: A name of `multirobust list suites`.
        threats: The balls, keyed "linf", "l2" and "l1".
        config: Steps, step sizes and restarts of PGD; severities of what is no norm; where
            corrupted images are stored.
        split: The images to attack, which stored corrupted images must belong to.

    Raises:
        InputError: If the name or a severity is unknown.
        DataError: If stored corrupted images are missing, damaged or of other images.
    """
    if name not in SUITES:
        raise lookup_error("suite", name, SUITES)
    return SUITES[name](threats, config, split)
