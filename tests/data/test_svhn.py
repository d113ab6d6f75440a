"""SVHN on small files in its published format, and on the beginning of the real one."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from fixtures_data import WAYS_TO_GET
from local_server import server
from multirobust.data import load_split, svhn, svhn_extra
from multirobust.data.content import content_digest
from multirobust.data.svhn import get_file
from multirobust.errors import DataError, InputError

COUNTS = {"train": 24, "test": 13, "extra": 17}
LIMITS = {"train_limit": 24, "test_limit": 13}


def arrays(part: str) -> dict[str, np.ndarray]:
    """X and y as in a published file: digits 1 to 9, and 10 for 0."""
    count = COUNTS[part]
    pixels = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
    return {"X": pixels, "y": (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None]}


@pytest.fixture
def folder(tmp_path) -> Path:
    for part in COUNTS:
        savemat(tmp_path / f"{part}_32x32.mat", arrays(part), do_compression=True)
    return tmp_path


def test_images_and_labels_are_those_of_the_file(folder):
    data = svhn(folder, **LIMITS)
    for part, split in (("train", data.train), ("test", data.test)):
        stored = arrays(part)
        assert np.array_equal(split.images.permute(2, 3, 1, 0).numpy(), stored["X"])
        assert split.labels.tolist() == [int(y) % 10 for y in stored["y"][:, 0]]
        assert split.images.is_contiguous()
    assert data.class_names == tuple("0123456789")
    assert data.augmentation is None
    assert data.test.source == "svhn"


def test_the_digest_is_of_the_training_images_alone(folder):
    data = svhn(folder, **LIMITS)
    assert data.digest == content_digest(data.train)
    assert svhn(folder, train_limit=24, test_limit=2, validation=4).digest == data.digest
    assert svhn(folder, train_limit=23, test_limit=13).digest != data.digest


def test_extra_images_come_with_the_labels_of_the_file(folder):
    split = svhn_extra(folder, limit=17)
    assert split.labels.tolist() == [int(y) % 10 for y in arrays("extra")["y"][:, 0]]
    assert torch.equal(svhn_extra(folder, 5).images, split.images[:5])


def test_limits_and_validation_are_as_for_cifar10(folder):
    whole = svhn(folder, **LIMITS)
    data = svhn(folder, train_limit=20, test_limit=5, validation=3)
    assert [len(data.train), len(data.validation), len(data.test)] == [17, 3, 5]
    seen = {i.numpy().tobytes() for s in (data.train, data.validation) for i in s.images}
    assert seen == {i.numpy().tobytes() for i in whole.train.images[:20]}


def test_a_file_that_is_not_whole_is_used_only_with_a_limit(folder):
    with pytest.raises(DataError, match=r"73,257 published images, got 24.*train_limit=24"):
        svhn(folder, test_limit=13)
    with pytest.raises(DataError, match=r"26,032 published images, got 13.*test_limit=13"):
        svhn(folder, train_limit=24)
    with pytest.raises(InputError, match=r"train_limit must be a whole number in 1\.\.24"):
        svhn(folder, train_limit=25, test_limit=13)


def test_the_test_images_are_read_without_the_others(folder):
    (folder / "train_32x32.mat").unlink()
    split = load_split("svhn", folder=folder, limit=4)
    assert np.array_equal(split.images.permute(2, 3, 1, 0).numpy(), arrays("test")["X"][..., :4])
    assert split.source == "svhn"


def test_a_missing_file_is_named_with_the_ways_to_get_it(tmp_path):
    with pytest.raises(DataError) as caught:
        svhn(tmp_path)
    for words in ("svhn/test_32x32.mat", *WAYS_TO_GET):
        assert words in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_one_clear_error(folder, share):
    path = folder / "test_32x32.mat"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"^SVHN: .*test_32x32\.mat "):
        svhn(folder, **LIMITS)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_one_clear_error_or_harmless(folder, seed):
    path, generator = folder / "test_32x32.mat", np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    for at in generator.integers(128, len(content), 8):
        content[at] = generator.integers(256)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"^SVHN: "):
        svhn(folder, **LIMITS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"X": np.zeros((32, 32, 3, 13))}, "X is double"),
        ({"X": np.zeros((13, 32, 32, 3), np.uint8)}, r"shape \(13, 32, 32, 3\)"),
        ({"y": np.ones((12, 1), np.uint8)}, r"y uint8 of shape \(12, 1\)"),
        ({"y": np.array(["a"] * 13, dtype=object)}, "y cell"),
        ({"y": np.zeros((13, 1), np.uint8)}, "10 being the digit 0, got 0 at position 0"),
        ({"y": np.full((13, 1), 11, np.uint8)}, "got 11"),
        ({"y": np.full((13, 1), 1.5)}, "got 1.5"),
    ],
)
def test_a_file_of_another_form_is_one_clear_error(folder, changes, words):
    savemat(folder / "test_32x32.mat", arrays("test") | changes)
    with pytest.raises(DataError, match=words):
        svhn(folder, **LIMITS)


def test_a_file_without_the_arrays_and_no_file_of_matlab_are_errors(folder):
    savemat(folder / "test_32x32.mat", {"digitStruct": np.zeros(3)})
    with pytest.raises(DataError, match="it holds digitStruct"):
        svhn(folder, **LIMITS)
    (folder / "test_32x32.mat").write_bytes(b"<html>Not found</html>" * 100)
    with pytest.raises(DataError, match="no MATLAB file"):
        svhn(folder, **LIMITS)


def test_a_header_cannot_ask_for_more_images_than_were_published(folder, monkeypatch):
    monkeypatch.setattr(sys.modules["multirobust.data.svhn"], "COUNTS", COUNTS | {"test": 12})
    with pytest.raises(DataError, match=r"must hold 1 to 12 images, got 13"):
        svhn(folder, **LIMITS)


def test_a_download_is_checked_and_continued(folder, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    content = (folder / "test_32x32.mat").read_bytes()
    md5, new = hashlib.md5(content).hexdigest(), tmp_path / "new" / "svhn"
    with server(content, stop_after=1000) as (url, asked, mend):
        url = url.removesuffix("/file.bin")
        with pytest.raises(DataError, match="to continue"):
            get_file("test", new, url=url, md5=md5)
        mend()
        assert get_file("test", new, url=url, md5=md5).read_bytes() == content
        with pytest.raises(DataError, match="must have MD5"):
            get_file("train", new, url=url)
        reader = sys.modules["multirobust.data.svhn"]
        monkeypatch.setattr(reader, "MD5", {"train": md5, "test": md5})
        monkeypatch.setattr(reader.get_file, "__kwdefaults__", {"url": url, "md5": None})
        split = load_split("svhn", folder=new, download=True, limit=13)
    assert asked[:2] == [None, "bytes=1000-"]
    assert len(split) == 13


def test_the_beginning_of_the_real_file_is_read(svhn_folder, tmp_path):
    path = tmp_path / "svhn"
    path.mkdir()
    for part in ("train", "test"):  # there are no real test images at hand
        (path / f"{part}_32x32.mat").symlink_to(svhn_folder / "svhn" / "train_32x32.mat")
    data = svhn(tmp_path, train_limit=1083, test_limit=10)
    assert data.train.labels[:8].tolist() == [1, 9, 2, 3, 2, 5, 9, 3]
    pixels = data.train.images.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(data.mean, abs=0.02)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(data.std, abs=0.02)
