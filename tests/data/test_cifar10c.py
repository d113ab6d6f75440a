"""CIFAR-10-C: the images of a severity, and an error for every way its files can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multirobust.data import Split
from multirobust.data.cifar10c import cifar10c, corrupted_images
from multirobust.errors import DataError, InputError

COUNT = 6
LABELS = np.array([3, 8, 8, 0, 6, 6])
PIXELS = np.random.default_rng(0).integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A folder in the published form with six images."""
    np.save(tmp_path / "fog.npy", PIXELS)
    np.save(tmp_path / "jpeg_compression.npy", 255 - PIXELS)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5).astype(np.uint8))
    return tmp_path


def clean(count: int = COUNT) -> Split:
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    return Split(images, torch.from_numpy(LABELS)[:count])


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_a_severity_is_its_fifth_of_the_file_with_channels_first(folder, severity):
    split = cifar10c(folder, "fog", severity)
    block = PIXELS[(severity - 1) * COUNT : severity * COUNT]
    assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), block)
    assert split.images.is_contiguous()
    assert split.labels.tolist() == LABELS.tolist()
    assert split.labels.dtype == torch.int64
    assert split.source == "cifar10"


def test_a_limited_clean_split_gets_its_first_images(folder):
    whole = cifar10c(str(folder), "jpeg_compression", 4, test=clean())
    part = cifar10c(folder, "jpeg_compression", 4, test=clean(2))
    assert len(part) == 2
    assert torch.equal(part.images, whole.images[:2])
    found = corrupted_images(folder, "jpeg_compression", 4, test=clean(2))
    assert torch.equal(found, part.images)


def test_labels_of_another_split_are_refused(folder):
    test = clean()
    shuffled = Split(test.images, test.labels.flip(0))
    with pytest.raises(DataError, match="neither shuffled nor sampled"):
        cifar10c(folder, "fog", 1, test=shuffled)
    twice = Split(test.images.repeat(2, 1, 1, 1), test.labels.repeat(2))
    with pytest.raises(DataError, match="limit the split to its first 6"):
        cifar10c(folder, "fog", 1, test=twice)


def test_an_unknown_corruption_is_refused_with_the_closest(folder):
    with pytest.raises(InputError, match=r"Did you mean 'fog'\?"):
        cifar10c(folder, "fogg", 1)
    with pytest.raises(InputError, match="Unknown corruption"):
        cifar10c(folder, "labels", 1)


@pytest.mark.parametrize("severity", [0, 6, 1.5, True])
def test_a_severity_out_of_range_is_refused(folder, severity):
    with pytest.raises(InputError, match="severity must be 1, 2, 3, 4 or 5"):
        cifar10c(folder, "fog", severity)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"labels\.npy is missing"):
        cifar10c(tmp_path / "nowhere", "fog", 1)
    for name in ("fog", "jpeg_compression"):
        (folder / f"{name}.npy").unlink()
    with pytest.raises(DataError, match="has no corruptions"):
        cifar10c(folder, "fog", 1)


@pytest.mark.parametrize("name", ["fog", "labels"])
@pytest.mark.parametrize("left", [0, 40, -7])
def test_truncated_files_are_refused(folder, name, left):
    path = folder / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match=rf"{name}\.npy is truncated or no array"):
        cifar10c(folder, "fog", 1)


@pytest.mark.parametrize(
    "wrong",
    [PIXELS[:-1], PIXELS.astype(np.float32), PIXELS.transpose(0, 3, 1, 2), PIXELS[..., :1]],
    ids=["count", "dtype", "layout", "channels"],
)
def test_images_of_another_shape_or_type_are_refused(folder, wrong):
    np.save(folder / "fog.npy", wrong)
    with pytest.raises(DataError, match=r"must be uint8 of shape \(30, 32, 32, 3\)"):
        cifar10c(folder, "fog", 1)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(31, np.int64), np.zeros((30, 1), np.int64), np.zeros(30), np.zeros(0, np.int64)],
    ids=["not five", "two dimensions", "floats", "none"],
)
def test_labels_that_are_not_five_times_the_same_integers_are_refused(folder, wrong):
    np.save(folder / "labels.npy", wrong)
    with pytest.raises(DataError, match="the same n labels five times"):
        cifar10c(folder, "fog", 1)
    np.save(folder / "labels.npy", np.arange(30))
    with pytest.raises(DataError, match="got others at another severity"):
        cifar10c(folder, "fog", 1)


def test_files_that_would_unpickle_are_not_opened(folder):
    np.save(folder / "labels.npy", np.array([print] * 30), allow_pickle=True)
    with pytest.raises(DataError, match="truncated or no array"):
        cifar10c(folder, "fog", 1)
