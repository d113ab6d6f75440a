from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures_data import WAYS_TO_GET
from multirobust.data import CropFlip, cifar10
from multirobust.data.cifar10 import CIFAR10, CLASS_NAMES, read_splits
from multirobust.data.pickles import PickleArchive
from multirobust.errors import DataError, InputError

COUNT = 20
NAMES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def made_up_batch(seed: int, count: int = COUNT) -> dict:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [(seed + i) % 10 for i in range(count)]}


@pytest.fixture
def pickles(tmp_path) -> tuple[Path, PickleArchive]:
    """Six small files in the official format, and an archive with their checksums."""
    for seed, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(pickle.dumps(made_up_batch(seed), protocol=4))
    return tmp_path, replace(CIFAR10, files={name: md5(tmp_path / name) for name in NAMES})


def test_made_up_pickles_are_read_in_order(pickles):
    folder, archive = pickles
    train, test = read_splits(folder, archive=archive, batch_images=COUNT)
    batches = [made_up_batch(seed) for seed in range(6)]
    pixels = np.concatenate([b["data"] for b in batches[:5]]).reshape(-1, 3, 32, 32)
    assert torch.equal(train.images, torch.from_numpy(pixels))
    assert train.labels.tolist() == [label for b in batches[:5] for label in b["labels"]]
    assert torch.equal(test.images.flatten(1), torch.from_numpy(batches[5]["data"]))
    assert test.labels.tolist() == batches[5]["labels"]


@pytest.mark.parametrize(("limit", "files"), [(1, 1), (20, 1), (21, 2), (55, 3), (100, 5)])
def test_only_the_files_that_the_limit_needs_are_looked_for(pickles, limit, files):
    folder, archive = pickles
    whole, _ = read_splits(folder, archive=archive, batch_images=COUNT)
    for name in NAMES[files:5]:
        (folder / name).unlink()
    options = {"archive": archive, "batch_images": COUNT}
    train, test = read_splits(folder, train_limit=limit, test_limit=3, **options)
    assert torch.equal(train.images, whole.images[:limit])
    assert len(test) == 3
    if files > 1:
        (folder / NAMES[files - 1]).unlink()
        with pytest.raises(DataError, match=NAMES[files - 1]):
            read_splits(folder, train_limit=limit, **options)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"data": np.zeros((COUNT, 3072), np.uint8)},
        {**made_up_batch(0), "data": np.zeros((COUNT, 3072), np.int64)},
        made_up_batch(0, count=COUNT - 1),
    ],
)
def test_a_pickle_of_something_else_is_one_clear_error(pickles, content):
    folder, archive = pickles
    path = folder / "data_batch_1"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="must hold `data`, uint8 of shape"):
        read_splits(
            folder,
            train_limit=1,
            archive=replace(archive, files={**archive.files, path.name: md5(path)}),
            batch_images=COUNT,
        )


def test_a_missing_file_is_named_with_the_ways_to_get_it(tmp_path):
    with pytest.raises(DataError) as caught:
        cifar10(tmp_path, train_limit=10)
    message = str(caught.value)
    assert str(tmp_path / "cifar-10-batches-py" / "data_batch_1") in message
    for way in WAYS_TO_GET:
        assert way in message


@pytest.mark.parametrize("options", [{"train_limit": 50_001}, {"test_limit": 0}])
def test_limits_are_checked_before_anything_is_read(tmp_path, options):
    with pytest.raises(InputError, match="_limit must be a whole number"):
        cifar10(tmp_path, download=True, **options)


@pytest.fixture
def real(cifar10_folder, monkeypatch):
    monkeypatch.delenv("MULTIROBUST_DATA", raising=False)
    return cifar10_folder


def test_the_official_files_are_read_whole(real):
    data = cifar10(real, train_limit=10_000)
    assert (len(data.train), len(data.test)) == (10_000, 10_000)
    assert (data.classes, data.channels, data.image_size) == (10, 3, (32, 32))
    assert data.augmentation == CropFlip(4)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    # The pickle holds 10,000 rows of 3,072 bytes back to back: its own bytes are the oracle.
    raw = (real / "cifar-10-batches-py" / "data_batch_1").read_bytes()
    assert data.train.images.numpy().tobytes() in raw
    assert data.train.labels[:8].tolist() == [6, 9, 9, 4, 1, 1, 2, 7]


def test_mean_and_std_are_close_to_those_of_one_fifth_of_the_images(real):
    data = cifar10(real, train_limit=10_000)
    pixels = data.train.images.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(data.mean, abs=0.005)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(data.std, abs=0.005)


def test_the_class_names_are_those_of_the_official_file(real):
    path = real / "cifar-10-batches-py" / "batches.meta"
    assert CIFAR10.read(path)["label_names"] == list(CLASS_NAMES)


def test_validation_images_are_a_stratified_part_disjoint_from_training(real):
    whole = cifar10(real, train_limit=5000)
    data = cifar10(real, train_limit=5000, validation=500)
    parts = [{i.numpy().tobytes() for i in s.images} for s in (data.train, data.validation)]
    assert [len(data.train), len(data.validation)] == [4500, 500]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {i.numpy().tobytes() for i in whole.train.images}
    fair = whole.train.labels.bincount() / 10
    assert (data.validation.labels.bincount() - fair).abs().max() < 1


@pytest.mark.parametrize("inside", [False, True])
def test_the_folder_may_be_named_or_come_from_the_environment(real, monkeypatch, tmp_path, inside):
    folder = real / "cifar-10-batches-py" if inside else real
    named = cifar10(folder, train_limit=10, test_limit=10)
    monkeypatch.setenv("MULTIROBUST_DATA", os.fspath(folder))
    assert torch.equal(cifar10(train_limit=10, test_limit=10).train.images, named.train.images)
    with pytest.raises(DataError, match="is missing"):
        cifar10(tmp_path, train_limit=10)


def test_files_that_are_there_are_not_downloaded(real, monkeypatch):
    def never(*_, **__):
        raise AssertionError("it was downloaded")

    monkeypatch.setattr("urllib.request.urlopen", never)
    assert len(cifar10(real, download=True, train_limit=10).train) == 10
