"""From a recipe to trained, evaluated and compared models, each in a folder of its own."""

from multirobust.experiment.api import evaluate, recipe_for, train
from multirobust.experiment.attacking import ExternalSubject, PartialWork, RunSubject, images_of
from multirobust.experiment.building import (
    build_defense,
    build_model,
    load_data,
    load_defense,
    load_model,
)
from multirobust.experiment.exporting import export_run
from multirobust.experiment.external import evaluate_external
from multirobust.experiment.gallery import gallery_of
from multirobust.experiment.pipeline import evaluate_run, evaluation_name, train_run
from multirobust.experiment.publishing import push, push_run
from multirobust.experiment.results import outcomes_at, result_of, results_of
from multirobust.experiment.runs import Run, find_runs, open_run, plan
from multirobust.experiment.showcase import report_runs
from multirobust.experiment.workflow import evaluate_all, prepare, train_all

__all__ = [
    "ExternalSubject",
    "PartialWork",
    "Run",
    "RunSubject",
    "build_defense",
    "build_model",
    "evaluate",
    "evaluate_all",
    "evaluate_external",
    "evaluate_run",
    "evaluation_name",
    "export_run",
    "find_runs",
    "gallery_of",
    "images_of",
    "load_data",
    "load_defense",
    "load_model",
    "open_run",
    "outcomes_at",
    "plan",
    "prepare",
    "push",
    "push_run",
    "recipe_for",
    "report_runs",
    "result_of",
    "results_of",
    "train",
    "train_all",
    "train_run",
]
