"""The first four losses of every defense on the embedded digits, against stored ones.

They catch a change of the numbers that no other test expects. After a change that is meant, write
the file anew and look at the difference:

    MULTIROBUST_REGENERATE=1 python -m pytest tests/defenses/test_golden.py
    git diff tests/golden/losses.json

The tolerance leaves room for other processors, which round differently.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from multirobust.attacks import attacking
from multirobust.config import AttackConfig, DefenseConfig, NormAttack, Recipe, ThreatConfig
from multirobust.data import Loader, digits
from multirobust.defenses import DEFENSES, build
from multirobust.models import build as build_model

GOLDEN = Path(__file__).parent.parent / "golden" / "losses.json"
STEPS, LR = 4, 0.5


def recipe(preset: str) -> Recipe:
    generator = {"conditioning": "noise", "generator_optimizer": "sgd"}
    return Recipe(
        threats=ThreatConfig(preset="digits", density=0.05),
        attack=AttackConfig(
            linf=NormAttack(steps=2, step_size=0.06),
            l2=NormAttack(steps=2, step_size=0.3),
            l1=NormAttack(steps=2, step_size=1.0),
        ),
        defense=DefenseConfig(
            msd_steps=2,
            msd_linf=0.06,
            msd_l2=0.3,
            msd_l1=1.0,
            apgd_steps=2,
            **(generator if preset == "official" else {}),
        ),
    )


def first_losses(name: str, preset: str) -> list[float]:
    data = digits(train_limit=64 * STEPS)
    model = build_model(
        "small_cnn", classes=10, channels=1, mean=data.mean, std=data.std, widths=(8, 16), seed=0
    )
    defense = build(name, recipe(preset), channels=1, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    losses = []
    for step, batch in enumerate(Loader(data.train, batch_size=64, seed=0).epoch(0)):
        generator = torch.Generator().manual_seed(step)
        model.train()
        with attacking(model, "batch"):
            views = defense.craft(model, batch, generator=generator)
        views = defense.adapt(model, batch, views, lr=LR, generator=generator)
        loss = defense.loss(model, batch, views).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 6))
    return losses


RUNS = [(name, "paper") for name in DEFENSES] + [("mng_ac", "official")]


@pytest.mark.parametrize(("name", "preset"), RUNS, ids=["-".join(run) for run in RUNS])
def test_the_first_losses_are_the_stored_ones(name, preset):
    losses, key = first_losses(name, preset), f"{name}-{preset}"
    stored = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
    if os.environ.get("MULTIROBUST_REGENERATE"):
        stored[key] = losses
        lines = [f'  "{run}": {json.dumps(stored[run])}' for run in sorted(stored)]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    assert losses == pytest.approx(stored[key], rel=1e-3)


def test_every_stored_run_is_tested():
    assert set(json.loads(GOLDEN.read_text("utf-8"))) == {"-".join(run) for run in RUNS}
