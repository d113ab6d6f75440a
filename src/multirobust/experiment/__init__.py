"""From a recipe to trained, evaluated and compared models, each in a folder of its own."""

from multirobust.experiment.api import evaluate, recipe_for, train
from multirobust.experiment.pipeline import (
    build_model,
    evaluate_run,
    load_data,
    load_defense,
    load_model,
    result_of,
    train_run,
)
from multirobust.experiment.runs import Run, find_runs, open_run, plan
from multirobust.experiment.showcase import gallery_of, report_runs

__all__ = [
    "Run",
    "build_model",
    "evaluate",
    "evaluate_run",
    "find_runs",
    "gallery_of",
    "load_data",
    "load_defense",
    "load_model",
    "open_run",
    "plan",
    "recipe_for",
    "report_runs",
    "result_of",
    "train",
    "train_run",
]
