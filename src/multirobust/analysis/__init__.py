"""Probes that turn models into arrays, and figures that show arrays."""

from multirobust.analysis.plots import per_norm_bars, union_against_cost

__all__ = ["per_norm_bars", "union_against_cost"]
