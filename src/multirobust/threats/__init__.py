"""Threats: norm balls within the pixel box, their exact projections, and the benchmark radii."""

from __future__ import annotations

from multirobust.threats.balls import L1, L2, Linf
from multirobust.threats.base import Threat
from multirobust.threats.maxima import linear_gain
from multirobust.threats.mixed import Allotment, MixedThreat
from multirobust.threats.presets import THREAT_PRESETS, threats_for
from multirobust.threats.projection import project_l1, project_l2, project_linf
from multirobust.threats.transformation import Transformation

__all__ = [
    "L1",
    "L2",
    "THREAT_PRESETS",
    "Allotment",
    "Linf",
    "MixedThreat",
    "Threat",
    "Transformation",
    "linear_gain",
    "project_l1",
    "project_l2",
    "project_linf",
    "threats_for",
]
