from __future__ import annotations

import pytest
import torch
from torch import nn

import multirobust as mr
from multirobust.defenses import Standard
from multirobust.errors import CheckpointError, InputError
from multirobust.evaluation import NamedAttack, Suite
from multirobust.experiment import load_data, recipe_for
from tiny_runs import tiny_recipe


@pytest.fixture(scope="module")
def data():
    return load_data(tiny_recipe().data)


def small(data, seed: int = 0) -> nn.Module:
    return mr.models.small_cnn(data, widths=(4, 8), seed=seed)


def test_any_model_is_trained_in_place_and_evaluated(data):
    model, recipe = small(data), tiny_recipe()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit = mr.train(model, data, "sat", recipe=recipe)
    assert fit.model is model
    assert any(not torch.equal(v, before[n]) for n, v in model.state_dict().items())
    outcomes = mr.evaluate(model, data, recipe=recipe)
    assert len(outcomes) == 16
    assert outcomes.threats == ("linf", "l2", "l1")
    assert len(mr.evaluate(model, data, recipe=recipe, limit=5)) == 5


def test_a_defense_and_a_suite_may_be_objects(data):
    recipe = tiny_recipe()
    model = mr.train(small(data), data, Standard(), recipe=recipe).model
    attack = mr.attacks.PGD(threat=mr.threats.Linf(0.1), steps=1, step_size=0.1)
    suite = Suite("mine", (NamedAttack("one", attack),))
    assert mr.evaluate(model, data, suite, recipe=recipe).threats == ("linf",)


@pytest.mark.parametrize(
    ("defense", "overrides", "training"),
    [
        ("e_at", (), False),
        ("ramp", (), False),
        ("sat", (), True),
        ("e_at", ("defense.extreme_batch_norm=batch",), True),
        ("sat", ("attack.batch_norm=running",), False),
    ],
)
def test_batch_norm_is_in_the_published_mode_during_the_attack(data, defense, overrides, training):
    modes: list[bool] = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small(data)

        def forward(self, x):
            if x.requires_grad:
                modes.append(self.inner.training)
            return self.inner(x)

    mr.train(Watched(), data, defense, recipe=tiny_recipe(*overrides))
    assert modes
    assert set(modes) == {training}


def test_the_shipped_recipe_of_the_data_is_the_default(data):
    assert recipe_for("digits") == mr.load_recipe("digits")
    split = mr.data.Split(data.test.images, data.test.labels)
    with pytest.raises(InputError, match="no recipe is shipped for 'a split of its own'"):
        mr.evaluate(small(data).eval(), split)


def test_a_folder_that_holds_another_training_is_refused(data, tmp_path):
    recipe = tiny_recipe()
    mr.train(small(data), data, "standard", recipe=recipe, folder=tmp_path)
    with pytest.raises(CheckpointError, match="defense: 'standard' there, 'sat' here"):
        mr.train(small(data), data, "sat", recipe=recipe, folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": lambda x: x}, "model must be a Module, got function"),
        ({"data": None}, r"data must be a Data, got NoneType; load one with multirobust\.data"),
        ({"defense": 3}, "defense must be a str or Defense, got int"),
        ({"defense": "satt"}, "Unknown defense: 'satt'. Did you mean 'sat'"),
        (
            {"recipe": "digits"},
            r"recipe must be a Recipe, got str; load one with multirobust\.load",
        ),
    ],
    ids=["model", "data", "defense", "name", "recipe"],
)
def test_train_tells_an_argument_of_the_wrong_kind(data, change, told):
    arguments = {"model": small(data), "data": data, "defense": "sat", "recipe": tiny_recipe()}
    with pytest.raises(InputError, match=told):
        mr.train(**arguments | change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": lambda x: x}, r"model must be a torch\.nn\.Module, got function"),
        ({"data": (torch.rand(2, 1, 8, 8), [0, 1])}, "data must be a Data or Split, got tuple"),
        ({"data": torch.rand(2, 1, 8, 8)}, r"got Tensor; make a split with Split\.from_arrays"),
        ({"suite": "qick"}, "Unknown suite: 'qick'. Did you mean 'quick'"),
        ({"suite": 3}, "suite must be a str or Suite, got int"),
        ({"recipe": {}}, "recipe must be a Recipe, got dict"),
        ({"limit": 0}, r"count must lie in 1\.\."),
    ],
    ids=["model", "tuple", "tensor", "name", "suite", "recipe", "limit"],
)
def test_evaluate_tells_an_argument_of_the_wrong_kind(data, change, told):
    arguments = {"model": small(data).eval(), "data": data, "recipe": tiny_recipe()}
    with pytest.raises(InputError, match=told):
        mr.evaluate(**arguments | change)
