from __future__ import annotations

import numpy as np
import pytest

from multirobust.evaluation import AttackColumn, Outcomes, State
from multirobust.report import RunResult

RADII = {"linf": 8 / 255, "l2": 128 / 255, "l1": 2000 / 255}


@pytest.fixture(scope="session")
def run():
    """Build a run of 1,000 images from the accuracies that it should show.

    The first images survive most: the union is the smallest of the accuracies.
    """

    def build(
        name, seed=0, *, clean=0.9, errors=0, n=1000, radii=RADII, seconds=60.0, **accuracies
    ):
        labels = np.zeros(n, np.int64)
        order = np.arange(n)
        columns = []
        for threat, accuracy in accuracies.items():
            states = np.where(order < round(accuracy * n), State.SURVIVED, State.BROKEN)
            states[:errors] = State.ERROR
            facts = {
                "seconds": 2.0,
                "forwards": 20.0,
                "backwards": 20.0,
                "settings": f"PGD({threat})",
            }
            columns.append(
                AttackColumn(f"pgd_{threat}", threat, radii[threat], states, np.zeros(n), **facts)
            )
        predictions = (order >= round(clean * n)).astype(np.int64)
        manifest = {"recipe": {"epochs": 3}, "seeds": [seed], "commit": "abc1234"}
        outcomes = Outcomes(order, labels, predictions, tuple(columns), manifest)
        return RunResult(name, seed, outcomes, seconds, 2e6, 1e6, "a CPU with 2 cores")

    return build


@pytest.fixture(scope="session")
def five(run):
    return [
        run("standard", clean=0.95, linf=0.0, l1=0.05, l2=0.1, seconds=30.0),
        run("adv_linf", clean=0.85, linf=0.45, l1=0.2, l2=0.5, seconds=300.0),
        run("adv_max", clean=0.80, linf=0.40, l1=0.55, l2=0.6, seconds=900.0),
        run("sat", clean=0.86, linf=0.35, l1=0.6, l2=0.65, seconds=310.0),
        run("mng_ac", clean=0.81, linf=0.41, l1=0.65, l2=0.65, seconds=420.0),
    ]
