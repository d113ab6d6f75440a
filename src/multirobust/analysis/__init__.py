"""Probes that turn models into arrays, and figures that show arrays."""

from multirobust.analysis.curves import CurveLine, CurvePanel, curves_figure
from multirobust.analysis.plots import per_norm_bars, union_against_cost

__all__ = ["CurveLine", "CurvePanel", "curves_figure", "per_norm_bars", "union_against_cost"]
