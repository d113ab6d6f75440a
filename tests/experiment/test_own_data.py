"""Recipes on images of one's own: the run knows them by their content, wherever they lie."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multirobust.config import load_recipe
from multirobust.data import CropFlip
from multirobust.errors import ConfigError, DataError, InputError, RunError
from multirobust.experiment import evaluate_run, find_runs, load_data
from multirobust.experiment.workflow import prepare, train_all

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)


def write(path: Path, shift: int = 0) -> Path:
    labels = np.arange(40) % 2
    pixels = PIXELS + np.uint8(shift)
    np.savez(path, x_train=pixels[:30], y_train=labels[:30], x_test=PIXELS[30:], y_test=labels[30:])
    return path


def recipe(path: Path, *more: str):
    overrides = [
        f"data.name={str(path)!r}",
        "model.widths=[4]",
        "defenses=['standard']",
        "training.epochs=1",
        "training.batch_size=10",
        *more,
    ]
    return load_recipe("digits", overrides)


def test_a_run_is_trained_found_and_loaded_again_where_the_file_was_moved(tmp_path):
    path = write(tmp_path / "mine.npz")
    runs, data = prepare(recipe(path), tmp_path / "runs")
    train_all(runs, data)
    (run,) = find_runs([tmp_path / "runs"])
    assert run.trained
    assert run.recipe.data.digest == data.digest == load_data(run.recipe.data).digest
    moved = shutil.move(path, tmp_path / "moved.npz")
    (same,), _ = prepare(recipe(Path(moved)), tmp_path / "runs")
    assert same.trained


def test_a_run_is_the_same_wherever_its_images_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i, pixels in enumerate(PIXELS[..., 0]):
        place = tmp_path / "mine" / ("train" if i < 30 else "test") / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    weights = {}
    for placement in ("auto", "disk"):
        chosen = recipe(tmp_path / "mine", f"data.placement={placement}", "data.validation=4")
        runs, data = prepare(chosen, tmp_path / placement)
        assert data.placement == {"auto": "auto", "disk": "host"}[placement]
        train_all(runs, data)
        weights[placement] = (runs[0].folder / "model.safetensors").read_bytes()
    assert weights["auto"] == weights["disk"]
    (moved,), _ = prepare(chosen, tmp_path / "auto")
    assert moved.trained


def test_a_folder_on_the_disk_needs_the_cache():
    with pytest.raises(ConfigError, match="keeps decoded images in the cache, got cache = false"):
        load_recipe("digits", ["data.name=./mine", "data.placement=disk", "data.cache=false"])


def test_changed_test_images_are_evaluated_again(tmp_path):
    path = write(tmp_path / "mine.npz")
    few = [f"evaluation.attack.{norm}.steps=1" for norm in ("linf", "l2", "l1")]
    runs, data = prepare(recipe(path, *few), tmp_path / "runs")
    train_all(runs, data)
    lines: list[str] = []
    first = evaluate_run(runs[0], data, report=lines.append)
    again = evaluate_run(runs[0], data, report=lines.append)
    assert lines.count("already evaluated with these settings") == 1
    assert again == first
    others = replace(data, test=data.test.subset(range(len(data.test) - 1, -1, -1)))
    changed = evaluate_run(runs[0], others, report=lines.append)
    assert any("the images are others" in line for line in lines)
    assert changed.labels.tolist() == others.test.labels.tolist()
    assert changed.manifest["split_digest"] != first.manifest["split_digest"]


def test_changed_training_images_are_refused(tmp_path):
    path = write(tmp_path / "mine.npz")
    prepare(recipe(path), tmp_path / "runs")
    (run,) = find_runs([tmp_path / "runs"])
    write(path, shift=1)
    with pytest.raises(DataError, match="must be those that the recipe notes"):
        load_data(run.recipe.data)
    with pytest.raises(RunError, match=r"holds another run \(data\.digest"):
        prepare(recipe(path), tmp_path / "runs")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("auto", None), ("none", None), ("flip", CropFlip(0)), ("crop_flip", CropFlip(4))],
)
def test_the_augmentation_is_the_chosen_one(tmp_path, chosen, expected):
    path = write(tmp_path / "mine.npz")
    config = recipe(path, f"data.augmentation={chosen}").data
    assert load_data(config).augmentation == expected


def test_a_name_that_is_no_path_and_no_data_set_is_refused_with_both_ways():
    with pytest.raises(ConfigError, match=r"Did you mean 'svhn'.*path of a folder, with a slash"):
        load_recipe("digits", ["data.name=svnh"])


def test_cifar10c_is_to_evaluate_on_only():
    with pytest.raises(ConfigError, match="has test images only; train on cifar10"):
        load_recipe("cifar10", ["data.name=cifar10c"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.folder=x", "folder is not for './mine.npz'"),
        ("data.download=true", "download is not for './mine.npz'"),
        ("data.size=8", "size is not for './mine.npz'"),
        ("data.placement=disk", "placement 'disk' is for a folder of one's own images, got './min"),
    ],
)
def test_fields_that_are_not_for_ones_own_images_are_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe("digits", ["data.name=./mine.npz", override])


@pytest.mark.parametrize("override", ["data.size=8", "data.class_names=['a', 'b']"])
def test_fields_of_ones_own_images_are_refused_for_data_sets(override):
    with pytest.raises(ConfigError, match="is not for 'digits'"):
        load_recipe("digits", [override])


@pytest.mark.parametrize("name", ["svhn", "tinyimagenet", "cifar100", "cifar10"])
def test_a_shipped_recipe_without_its_files_says_how_to_get_them(name, tmp_path):
    chosen = load_recipe(name, [f"data.folder={str(tmp_path)!r}"])
    with pytest.raises(
        DataError, match=r"is missing.*--set data\.folder=PATH.*--set data\.download=true"
    ):
        prepare(chosen, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_shipped_radii_are_those_of_the_data_set():
    for name in ("svhn", "tinyimagenet"):
        assert load_recipe(name).threats.preset == name
        assert load_recipe(name).data.name == name
    assert load_recipe("tinyimagenet").model.name == "preact_resnet_50"


def test_an_own_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises((DataError, InputError), match="must hold the folders train and test"):
        prepare(recipe(tmp_path / "nowhere"), tmp_path / "runs")
