"""Train image classifiers that withstand several kinds of attack, and measure how well any does.

    >>> import multirobust as mr
    >>> data = mr.data.digits()
    >>> model = mr.train(mr.models.small_cnn(data), data, defense="mng_ac").model  # doctest: +SKIP
    >>> print(mr.evaluate(model, data.test, suite="quick"))  # doctest: +SKIP

Everything is imported when it is first used: importing the package itself loads nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multirobust import (
        attacks,
        config,
        data,
        defenses,
        errors,
        evaluation,
        experiment,
        metagrad,
        models,
        report,
        threats,
        training,
    )
    from multirobust.config import load_recipe
    from multirobust.experiment import evaluate, train
    from multirobust.models.pretrained import from_pretrained

__all__ = [
    "attacks",
    "config",
    "data",
    "defenses",
    "errors",
    "evaluate",
    "evaluation",
    "experiment",
    "from_pretrained",
    "load_recipe",
    "metagrad",
    "models",
    "report",
    "threats",
    "train",
    "training",
]

_FROM = {
    "evaluate": "multirobust.experiment",
    "from_pretrained": "multirobust.models.pretrained",
    "load_recipe": "multirobust.config",
    "train": "multirobust.experiment",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _FROM:
        value = getattr(importlib.import_module(_FROM[name]), name)
    elif name in __all__:
        value = importlib.import_module(f"multirobust.{name}")
    else:
        raise AttributeError(f"module 'multirobust' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
