"""Probes that turn models into arrays, and figures that show arrays."""

from multirobust.analysis.boundary import Boundary, decision_boundary
from multirobust.analysis.curves import CurveLine, CurvePanel, curves_figure
from multirobust.analysis.noise import Augmented, GeneratedNoise, amplified, generated_noise
from multirobust.analysis.plots import per_norm_bars, union_against_cost
from multirobust.analysis.plots_boundary import decision_boundaries
from multirobust.analysis.plots_gaps import CostPoint, Gap, gaps_and_costs
from multirobust.analysis.plots_noise import noise_gallery
from multirobust.analysis.plots_surfaces import loss_surfaces
from multirobust.analysis.surfaces import Surface, loss_surface
from multirobust.analysis.trends import (
    accuracy_against,
    metric_series,
    seed_interval,
    training_curves,
)

__all__ = [
    "Augmented",
    "Boundary",
    "CostPoint",
    "CurveLine",
    "CurvePanel",
    "Gap",
    "GeneratedNoise",
    "Surface",
    "accuracy_against",
    "amplified",
    "curves_figure",
    "decision_boundaries",
    "decision_boundary",
    "gaps_and_costs",
    "generated_noise",
    "loss_surface",
    "loss_surfaces",
    "metric_series",
    "noise_gallery",
    "per_norm_bars",
    "seed_interval",
    "training_curves",
    "union_against_cost",
]
