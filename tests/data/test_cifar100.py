"""CIFAR-100 on small pickles in its official format."""

from __future__ import annotations

import hashlib
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures_data import WAYS_TO_GET
from multirobust.data import CropFlip, cifar100, load_split
from multirobust.data.pickles import PickleArchive
from multirobust.errors import DataError, InputError

COUNTS = {"train": 30, "test": 20}
NAMES = [f"class {i}" for i in range(100)]


def content(part: str, **changes: object) -> dict:
    count = COUNTS[part]
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
    fine = [(7 * i) % 100 for i in range(count)]
    return {"data": pixels, "fine_labels": fine, "coarse_labels": [0] * count} | changes


def write(path: Path, values: object) -> str:
    path.write_bytes(pickle.dumps(values, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Make a folder in the official layout, with any content, that counts as the published one."""
    reader = sys.modules["multirobust.data.cifar100"]

    def make(**contents: object) -> Path:
        folder = tmp_path / "cifar-100-python"
        folder.mkdir(exist_ok=True)
        values = {"meta": {"fine_label_names": NAMES}}
        values |= {part: content(part) for part in COUNTS} | contents
        files = {name: write(folder / name, value) for name, value in values.items()}
        archive: PickleArchive = replace(reader.CIFAR100, files=files)
        monkeypatch.setattr(reader, "CIFAR100", archive)
        monkeypatch.setattr(reader.read_part, "__kwdefaults__", {"archive": archive, "count": None})
        monkeypatch.setattr(reader, "COUNTS", COUNTS)
        return tmp_path

    return make


def test_images_and_fine_labels_are_read_in_order(official):
    data = cifar100(official())
    for part, split in (("train", data.train), ("test", data.test)):
        assert np.array_equal(split.images.flatten(1).numpy(), content(part)["data"])
        assert split.labels.tolist() == content(part)["fine_labels"]
    assert data.train.images.shape == (30, 3, 32, 32)
    assert data.class_names == tuple(NAMES)
    assert data.augmentation == CropFlip(4)
    assert data.digest is None  # the published checksums say it


def test_limits_and_validation_are_as_for_cifar10(official):
    root = official()
    whole = cifar100(root)
    data = cifar100(root, train_limit=20, test_limit=5, validation=4)
    assert [len(data.train), len(data.validation), len(data.test)] == [16, 4, 5]
    assert torch.equal(data.test.images, whole.test.images[:5])
    seen = {i.numpy().tobytes() for s in (data.train, data.validation) for i in s.images}
    assert seen == {i.numpy().tobytes() for i in whole.train.images[:20]}
    with pytest.raises(InputError, match="train_limit must be a whole number"):
        cifar100(root, train_limit=31)


def test_the_test_images_are_read_without_the_others(official):
    root = official()
    whole = cifar100(root).test
    for name in ("train", "meta"):
        (root / "cifar-100-python" / name).unlink()
    split = load_split("cifar100", folder=root, limit=3)
    assert torch.equal(split.images, whole.images[:3])
    assert split.source == "cifar100"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("train", content("test"), "a list of 30"),
        ("train", {"data": content("train")["data"], "labels": [0] * 30}, "`fine_labels`"),
        ("train", content("train", fine_labels=[100] * 30), r"in 0\.\.99, got 100"),
        ("train", content("train", data=np.zeros((30, 3072))), "uint8"),
        ("meta", {"fine_label_names": ["cat"]}, "a list of 100"),
    ],
)
def test_a_pickle_of_another_form_is_one_clear_error(official, name, value, words):
    with pytest.raises(DataError, match=words) as caught:
        cifar100(official(**{name: value}))
    assert str(caught.value).startswith("CIFAR-100: ")


def test_a_truncated_pickle_has_another_checksum(official):
    root = official()
    path = root / "cifar-100-python" / "train"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="published MD5"):
        cifar100(root)


def test_a_missing_file_is_named_with_the_ways_to_get_it(tmp_path):
    with pytest.raises(DataError) as caught:
        cifar100(tmp_path)
    for words in ("cifar-100-python", *WAYS_TO_GET):
        assert words in str(caught.value)
