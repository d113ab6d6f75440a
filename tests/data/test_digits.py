from __future__ import annotations

import hashlib
import sys

import pytest
import torch

from multirobust.data import digits
from multirobust.data.digits import digits_indices
from multirobust.data.holdout import stratified_order
from multirobust.errors import InputError

CHECKSUM = "f35c6ce50ca4719317c3dae9676231868e7cb803cd3a666d3822ea0b638b8e0d"


@pytest.fixture(scope="module")
def scans():
    from sklearn.datasets import load_digits

    return load_digits()


def test_the_split_of_the_indices_is_the_published_one(scans):
    train, test = digits_indices(torch.tensor(scans.target))
    assert (len(train), len(test)) == (1297, 500)
    assert sorted(train.tolist() + test.tolist()) == list(range(1797))
    text = f"{train.tolist()}{test.tolist()}".encode()
    assert hashlib.sha256(text).hexdigest() == CHECKSUM


def test_images_and_labels_are_the_scans_of_their_indices(scans):
    data, parts = digits(), digits_indices(torch.tensor(scans.target))
    splits = (data.train, data.test)
    for split, indices in zip(splits, parts, strict=True):
        rounded = (torch.tensor(scans.images[indices]) * 255 / 16 + 1e-9).round()
        assert torch.equal(split.images[:, 0].double(), rounded)
        assert split.labels.tolist() == scans.target[indices].tolist()


def test_scans_that_lie_elsewhere_are_asked_of_scikit_learn(monkeypatch):
    as_read = digits()
    monkeypatch.setattr(sys.modules["multirobust.data.digits"], "find_spec", lambda name: None)
    asked = digits()
    for part in ("train", "test"):
        for field in ("images", "labels"):
            ours, theirs = (getattr(getattr(data, part), field) for data in (as_read, asked))
            assert torch.equal(ours, theirs)


def test_mean_and_std_are_those_of_the_training_pixels():
    data = digits()
    pixels = data.train.images.double() / 255
    assert pixels.mean().item() == pytest.approx(data.mean[0], abs=5e-5)
    assert pixels.std(correction=0).item() == pytest.approx(data.std[0], abs=5e-5)
    assert digits(train_limit=50).mean == data.mean


def test_the_facts_of_the_digits():
    data = digits()
    assert (data.name, data.classes, data.channels, data.image_size) == ("digits", 10, 1, (8, 8))
    assert data.class_names == tuple("0123456789")
    assert data.augmentation is None


def test_limits_take_the_first_images():
    whole, some = digits(), digits(train_limit=100, test_limit=50)
    assert torch.equal(some.train.images, whole.train.images[:100])
    assert torch.equal(some.test.images, whole.test.images[:50])


def test_validation_images_are_disjoint_from_training_and_together_all():
    whole, data = digits(train_limit=600), digits(train_limit=600, validation=120)
    assert (len(data.train), len(data.validation), len(data.test)) == (480, 120, 500)
    images = [tuple(i.flatten().tolist()) for i in (*data.train.images, *data.validation.images)]
    assert sorted(images) == sorted(tuple(i.flatten().tolist()) for i in whole.train.images)
    assert len(set(images)) == len(images)  # no scan occurs twice, so equal sets are disjoint parts
    again = digits(train_limit=600, validation=120)
    assert torch.equal(again.validation.images, data.validation.images)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_limit": 0}, "train_limit must be"),
        ({"train_limit": 1298}, r"in 1\.\.1297, the images there are, got 1298"),
        ({"test_limit": 501}, r"test_limit must be a whole number in 1\.\.500"),
        ({"test_limit": 2.5}, "test_limit must be a whole number"),
        ({"validation": -1}, "validation must be"),
        ({"validation": 100, "train_limit": 100}, r"in 0\.\.99, since it is taken out of the 100"),
        ({"train_limit": 1}, "train must hold images of two classes or more"),
    ],
)
def test_sizes_that_do_not_fit_are_one_clear_error(options, words, as_installed):
    with pytest.raises(InputError, match=words):
        digits(**options)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_prefix_of_the_stratified_order_has_the_class_shares(seed):
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    order = stratified_order(labels, seed=seed)
    assert sorted(order.tolist()) == list(range(100))
    counts = torch.nn.functional.one_hot(labels[order]).cumsum(0)
    fair = torch.arange(1, 101)[:, None] * torch.tensor([0.7, 0.2, 0.1])
    assert (counts - fair).abs().max() < 1
    assert not torch.equal(order, stratified_order(labels, seed=seed + 1))
