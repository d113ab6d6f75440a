"""Threats: norm balls within the pixel box, their exact projections, and the benchmark radii."""

from __future__ import annotations

from multirobust.threats.balls import L1, L2, Linf
from multirobust.threats.base import Threat
from multirobust.threats.maps import BALL_MAPS, BallMap, HardProjection, SmoothMap, StraightThrough
from multirobust.threats.maxima import linear_gain
from multirobust.threats.mixed import Allotment, MixedThreat, mapped_into
from multirobust.threats.presets import THREAT_PRESETS, threats_for
from multirobust.threats.projection import project_l1, project_l2, project_linf
from multirobust.threats.scale import check_scale
from multirobust.threats.transformation import Transformation

__all__ = [
    "BALL_MAPS",
    "L1",
    "L2",
    "THREAT_PRESETS",
    "Allotment",
    "BallMap",
    "HardProjection",
    "Linf",
    "MixedThreat",
    "SmoothMap",
    "StraightThrough",
    "Threat",
    "Transformation",
    "check_scale",
    "linear_gain",
    "mapped_into",
    "project_l1",
    "project_l2",
    "project_linf",
    "threats_for",
]
