from __future__ import annotations

import numpy as np
import pytest
import torch

from multirobust import experiment
from multirobust.config import DataConfig, load_recipe
from multirobust.data import Split, Unlabeled, digits
from multirobust.data.pseudo_labels import save_pseudo_labels
from multirobust.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InputError,
    Interrupted,
    RunError,
)
from multirobust.experiment import load_data, open_run, prepare, train_run
from multirobust.experiment.runs import identity
from multirobust.experiment.unlabeled import (
    check_unlabeled,
    rest_of,
    with_unlabeled,
)
from tiny_runs import tiny_recipe


def made(path, seed: int = 0, count: int = 30, shape=(1, 8, 8), classes: int = 10):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=g)
    labels = torch.randint(0, classes, (count,), generator=g)
    labels[0] = classes - 1
    save_pseudo_labels(path, images, labels, {"count": count})
    return path


def recipe_with(path, *overrides: str):
    return tiny_recipe(f"data.unlabeled={str(path)!r}", *overrides)


def weights(run) -> bytes:
    return (run.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["data.unlabeled_share=0.3"], "unlabeled_share says how unlabeled images are used"),
        (["data.epoch=all"], "epoch says how unlabeled images are used"),
        (["data.unlabeled_limit=3"], "unlabeled_limit says how unlabeled images are used"),
        (["data.unlabeled=x", "data.unlabeled_share=pooled"], "set data.epoch to 'all'"),
        (["data.unlabeled=x", "data.unlabeled_share=1.0"], "data.unlabeled_share"),
        (["data.unlabeled="], "data.unlabeled: "),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, problem):
    with pytest.raises(ConfigError, match=problem):
        load_recipe("digits", overrides)


def test_the_images_left_over_are_those_beyond_the_limit_in_their_order():
    whole = digits().train
    rest = rest_of(DataConfig(name="digits", train_limit=200, validation=50))
    assert torch.equal(rest.images, whole.images[200:])
    assert torch.equal(rest.labels, whole.labels[200:])
    first = load_data(DataConfig(name="digits", train_limit=200)).train
    assert torch.equal(first.images, whole.images[:200])


@pytest.mark.parametrize("limit", [None, 1297])
def test_where_all_labels_were_used_there_is_nothing_left_to_label(limit):
    with pytest.raises(InputError, match="none are left to label"):
        rest_of(DataConfig(name="digits", train_limit=limit))


def test_unlabeled_images_leave_everything_else_of_the_data_as_it_is(tmp_path):
    recipe = recipe_with(made(tmp_path / "x.npz"), "data.unlabeled_limit=20")
    plain = load_data(recipe.data)
    data = with_unlabeled(plain, recipe.data)
    assert data.train is plain.train
    assert (data.mean, data.std, data.digest) == (plain.mean, plain.std, plain.digest)
    assert data.unlabeled is not None
    assert (len(data.unlabeled), data.unlabeled.share, data.unlabeled.epoch) == (20, 0.5, "labeled")
    assert with_unlabeled(data, recipe.data) is data
    assert with_unlabeled(plain, tiny_recipe().data) is plain


@pytest.mark.parametrize(
    ("form", "problem"),
    [({"shape": (3, 8, 8)}, "must have images of shape"), ({"classes": 11}, r"labels in 0\.\.9")],
)
def test_images_or_classes_of_another_data_set_are_refused(form, problem, tmp_path):
    recipe = recipe_with(made(tmp_path / "x.npz", **form))
    with pytest.raises(DataError, match=problem):
        prepare(recipe, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("defense", ["mng_ac_rst", "rst_linf"])
def test_a_self_trained_defense_without_unlabeled_images_says_how_to_get_them(defense):
    with pytest.raises(InputError, match="multirobust pseudo-label RUN DATA"):
        check_unlabeled(defense, digits(train_limit=50))


@pytest.mark.parametrize(
    "ways", [(), ("data.unlabeled_share=pooled", "data.epoch=all"), ("data.epoch=all",)]
)
def test_a_training_with_unlabeled_images_goes_on_bit_for_bit(ways, tmp_path):
    fixed = ("defenses=['standard']", "training.epochs=2")
    recipe = recipe_with(made(tmp_path / "x.npz"), *fixed, *ways)
    for name, stops in (("whole", ()), ("stopped", (1, 2))):
        (run,), data = prepare(recipe, tmp_path / name)
        for steps in stops:
            counted = iter(range(steps))
            with pytest.raises(Interrupted):
                train_run(run, data, stop=lambda c=counted: next(c, None) is None)
        train_run(run, data)
    assert weights(run) == (tmp_path / "whole/standard-s0/model.safetensors").read_bytes()


def test_unlabeled_images_change_what_is_trained(tmp_path):
    chosen = [
        tiny_recipe("defenses=['standard']"),
        recipe_with(made(tmp_path / "a.npz"), "defenses=['standard']"),
        recipe_with(made(tmp_path / "b.npz", seed=1), "defenses=['standard']"),
    ]
    found = set()
    for i, recipe in enumerate(chosen):
        (run,), data = prepare(recipe, tmp_path / str(i))
        train_run(run, data)
        found.add(weights(run))
    assert len(found) == 3


def test_the_content_of_the_file_decides_which_run_it_is_not_its_path(tmp_path):
    path = made(tmp_path / "x.npz")
    (run,), data = prepare(recipe_with(path, "defenses=['standard']"), tmp_path / "runs")
    train_run(run, data)
    moved = path.rename(tmp_path / "y.npz")
    (again,), _ = prepare(recipe_with(moved, "defenses=['standard']"), tmp_path / "runs")
    assert again.trained
    with pytest.raises(RunError, match=r"unlabeled_digest"):
        prepare(
            recipe_with(made(tmp_path / "x.npz", seed=1), "defenses=['standard']"),
            tmp_path / "runs",
        )
    facts = identity(run.recipe, "standard", 0)
    assert "data.unlabeled" not in facts
    assert facts["data.unlabeled_digest"] == data.unlabeled.digest


def test_a_trained_run_is_used_without_its_unlabeled_images(tmp_path):
    path = made(tmp_path / "x.npz")
    (run,), data = prepare(recipe_with(path, "defenses=['standard']"), tmp_path / "runs")
    train_run(run, data)
    path.unlink()
    (found,) = experiment.find_runs([tmp_path / "runs"])
    assert experiment.load_model(found, load_data(found.recipe.data)) is not None


def test_other_pseudo_labels_than_the_recipe_notes_are_refused(tmp_path):
    path = made(tmp_path / "x.npz")
    digest = with_unlabeled(digits(), DataConfig(name="digits", unlabeled=str(path))).unlabeled
    assert digest is not None
    noted = DataConfig(name="digits", unlabeled=str(path), unlabeled_digest=digest.digest)
    assert with_unlabeled(digits(), noted).unlabeled is not None
    made(path, seed=1)
    with pytest.raises(DataError, match="that the recipe notes"):
        with_unlabeled(digits(), noted)


def test_a_checkpoint_made_with_other_pseudo_labels_is_not_continued(tmp_path):
    recipe = tiny_recipe("defenses=['standard']")
    (run,), data = prepare(recipe, tmp_path)
    images = np.zeros((20, 1, 8, 8), np.uint8)

    def labeled(by: int):
        split = Split.from_arrays(images, np.full(20, by), layout="nchw")
        return experiment.building.replace(data, unlabeled=Unlabeled(split))

    asked = iter([False, True])
    with pytest.raises(Interrupted):
        train_run(run, labeled(0), stop=lambda: next(asked))
    with pytest.raises(CheckpointError, match="unlabeled"):
        train_run(run, labeled(1))


def test_a_run_that_is_trained_alone_finds_its_unlabeled_images(tmp_path):
    recipe = recipe_with(made(tmp_path / "x.npz"), "defenses=['standard']")
    (one,), data = prepare(recipe, tmp_path / "one")
    train_run(one, data)
    (two,) = experiment.plan(recipe, tmp_path / "two")
    open_run(two)
    train_run(two, load_data(recipe.data))
    assert weights(one) == weights(two)
