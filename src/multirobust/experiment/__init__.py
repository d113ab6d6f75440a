"""From a recipe to trained, evaluated and compared models, each in a folder of its own.

Each part is imported when it is first used: to train takes none of what reports and exports.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_FROM = {
    "ExternalSubject": "attacking",
    "PartialWork": "attacking",
    "Run": "runs",
    "RunSubject": "attacking",
    "build_defense": "building",
    "build_model": "building",
    "evaluate": "api",
    "evaluate_all": "workflow",
    "evaluate_external": "external",
    "evaluate_run": "pipeline",
    "evaluation_name": "pipeline",
    "export_run": "exporting",
    "find_runs": "runs",
    "gallery_of": "gallery",
    "images_of": "attacking",
    "load_data": "building",
    "load_defense": "building",
    "load_model": "building",
    "open_run": "runs",
    "outcomes_at": "results",
    "plan": "runs",
    "prepare": "workflow",
    "push": "publishing",
    "push_run": "publishing",
    "recipe_for": "api",
    "report_runs": "showcase",
    "result_of": "results",
    "results_of": "results",
    "train": "api",
    "train_all": "workflow",
    "train_run": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _FROM:
        raise AttributeError(f"module 'multirobust.experiment' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"multirobust.experiment.{_FROM[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
