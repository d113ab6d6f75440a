"""Tiny-ImageNet in a small folder of its official layout, and on real images."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures_data import WAYS_TO_GET
from local_server import server
from multirobust.data import CropFlip, load_split, tinyimagenet
from multirobust.data.tinyimagenet import get_archive
from multirobust.errors import DataError, InputError

WNIDS = [f"n{10_000_000 + 7 * i}" for i in range(200)]
LIMITS = {"train_limit": 400, "test_limit": 200}


def jpeg(seed: int, *, size: int = 64, mode: str = "RGB") -> bytes:
    color = np.random.default_rng(seed).integers(0, 256, 3 if mode == "RGB" else 1).tolist()
    image = Image.new(mode, (size, size), tuple(color) if mode == "RGB" else color[0])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """The official layout with two training images and a test image a class."""
    found = {}
    for i, wnid in enumerate(WNIDS):
        mode = "L" if i == 3 else "RGB"
        for j in range(2):
            found[f"train/{wnid}/images/{wnid}_{j}.JPEG"] = jpeg(2 * i + j, mode=mode)
        found[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        found[f"val/images/val_{i}.JPEG"] = jpeg(1000 + i)
    # The lists are in an order of their own.
    found["wnids.txt"] = "\n".join(reversed(WNIDS)).encode()
    found["words.txt"] = "".join(f"{w}\tword {w[-2:]}, other\n" for w in WNIDS).encode()
    lines = [f"val_{i}.JPEG\t{WNIDS[i]}\t0\t0\t63\t63\n" for i in reversed(range(200))]
    found["val/val_annotations.txt"] = "".join(lines).encode()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    for name, content in files().items():
        path = root / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def test_images_are_labeled_by_the_sorted_ids_of_their_class(whole):
    data = tinyimagenet(whole, **LIMITS)
    assert data.train.labels.bincount().tolist() == [2] * 200
    assert data.test.labels.bincount().tolist() == [1] * 200
    for row in range(0, 400, 37):
        label = int(data.train.labels[row])
        colors = [
            np.array(Image.open(io.BytesIO(jpeg(2 * label + j, mode=mode))).convert("RGB"))
            for j in range(2)
            for mode in ["L" if label == 3 else "RGB"]
        ]
        found = data.train.images[row].permute(1, 2, 0).numpy()
        assert any(np.array_equal(found, color) for color in colors)
    row = int((data.test.labels == 17).nonzero())
    expected = np.array(Image.open(io.BytesIO(jpeg(1017))))
    assert np.array_equal(data.test.images[row].permute(1, 2, 0).numpy(), expected)


def test_the_first_images_are_of_all_classes(whole):
    data = tinyimagenet(whole, train_limit=200, test_limit=100)
    assert data.train.labels.bincount().tolist() == [1] * 200
    assert int(data.test.labels.unique().numel()) == 100
    assert torch.equal(data.train.images, tinyimagenet(whole, **LIMITS).train.images[:200])


def test_gray_images_become_rgb(whole):
    data = tinyimagenet(whole, **LIMITS)
    gray = data.train.images[data.train.labels == 3]
    assert gray.shape == (2, 3, 64, 64)
    assert torch.equal(gray[:, 0], gray[:, 1])


def test_names_are_first_words_and_told_apart_by_their_id(whole):
    names = tinyimagenet(whole, **LIMITS).class_names
    assert len(set(names)) == 200
    assert names[0] == f"word 00 ({WNIDS[0]})"  # two ids end in 00


def test_it_is_augmented_by_crops_and_flips(whole):
    data = tinyimagenet(whole, **LIMITS, validation=30)
    assert data.augmentation == CropFlip(4)
    assert [len(data.train), len(data.validation)] == [370, 30]


def test_the_digest_is_of_the_training_files(whole, folder):
    first = tinyimagenet(whole, **LIMITS).digest
    assert tinyimagenet(folder, train_limit=400, test_limit=3, validation=9).digest == first
    path = folder / "tiny-imagenet-200" / "train" / WNIDS[5] / "images" / f"{WNIDS[5]}_1.JPEG"
    path.write_bytes(jpeg(5000))
    assert tinyimagenet(folder, **LIMITS).digest != first


def test_a_folder_that_is_not_whole_is_used_only_with_a_limit(whole):
    with pytest.raises(DataError, match=r"100,000 published images, got 400.*train_limit=400"):
        tinyimagenet(whole)
    with pytest.raises(DataError, match=r"10,000 published images, got 200.*test_limit=200"):
        tinyimagenet(whole, train_limit=400)


def test_the_test_images_are_read_without_the_others(folder):
    shutil.rmtree(folder / "tiny-imagenet-200" / "train")
    assert len(load_split("tinyimagenet", folder=folder, limit=9)) == 9


def test_a_missing_folder_is_named_with_the_ways_to_get_it(tmp_path):
    with pytest.raises(DataError) as caught:
        tinyimagenet(tmp_path)
    for words in ("tiny-imagenet-200", *WAYS_TO_GET):
        assert words in str(caught.value)


def spoiled(root: Path, kind: str) -> None:
    lists = {"wnids": "wnids.txt", "annotations": "val/val_annotations.txt"}
    image = root / "val" / "images" / "val_0.JPEG"
    what, _, how = kind.partition(": ")
    if what in lists:
        path = root / lists[what]
        lines = path.read_text().splitlines()
        lines = {
            "empty": [],
            "short": lines[:-1] if what == "wnids" else [line.split("\t")[0] for line in lines],
            "twice": [*lines[1:], lines[1]],
            "path": ["../" + lines[0], *lines[1:]],
            "foreign": [lines[0].replace("\tn", "\tx"), *lines[1:]],
        }[how]
        path.write_text("\n".join(lines))
    elif what == "train":
        shutil.rmtree(root / "train" / WNIDS[7])
    else:
        content = {
            "empty": b"",
            "truncated": image.read_bytes()[:400],
            "text": b"no image",
            "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
            "size": jpeg(0, size=65),
        }
        if how == "missing":
            image.unlink()
        else:
            image.write_bytes(content[how])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("wnids: empty", "200 different classes"),
        ("wnids: short", "got 199 lines"),
        ("wnids: twice", "200 different classes"),
        ("wnids: path", "such as '../n"),
        ("annotations: empty", "got 0"),
        ("annotations: short", "line 1 is"),
        ("annotations: twice", "there twice"),
        ("annotations: path", "line 1 is"),
        ("annotations: foreign", "line 1 is"),
        ("train: missing class", "must have its folder"),
        ("image: empty", r"val_0\.JPEG cannot be read as an image"),
        ("image: truncated", r"val_0\.JPEG cannot be read as an image"),
        ("image: text", r"val_0\.JPEG cannot be read as an image"),
        ("image: postscript", r"val_0\.JPEG cannot be read as an image"),
        ("image: size", "64x64 pixels, got 65x65"),
        ("image: missing", r"val_0\.JPEG cannot be read"),
    ],
)
def test_whatever_is_wrong_is_one_clear_error(folder, kind, words):
    spoiled(folder / "tiny-imagenet-200", kind)
    with pytest.raises(DataError, match=words):
        tinyimagenet(folder, **LIMITS)


def zipped(extra: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (files() | extra).items():
            archive.writestr(name if name in extra else f"tiny-imagenet-200/{name}", content)
    return buffer.getvalue()


def test_the_zip_is_downloaded_continued_and_unpacked_and_nothing_lands_elsewhere(
    tmp_path, whole, monkeypatch
):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hostile = ["../evil", "/evil", "tiny-imagenet-200/../../evil", "tiny-imagenet-200/evil.py"]
    hostile += ["tiny-imagenet-200/val/images/../../../val_1.JPEG", "tiny-imagenet-200/test/a.JPEG"]
    content = zipped(dict.fromkeys(hostile, b"evil"))
    root = tmp_path / "deep" / "data" / "tiny-imagenet-200"
    with server(content, stop_after=5000) as (url, asked, mend):
        arguments = {"url": url, "md5": hashlib.md5(content).hexdigest()}
        with pytest.raises(DataError, match="to continue"):
            get_archive(root, **arguments)
        mend()
        reader = sys.modules["multirobust.data.tinyimagenet"]
        monkeypatch.setattr(reader.get_archive, "__kwdefaults__", arguments)
        data = tinyimagenet(root, download=True, **LIMITS)
    assert asked == [None, "bytes=5000-"]
    assert data.digest == tinyimagenet(whole, **LIMITS).digest
    assert sorted(p.name for p in root.iterdir()) == ["train", "val", "wnids.txt", "words.txt"]
    assert list(tmp_path.rglob("*evil*")) == []
    assert sum(p.is_file() for p in tmp_path.rglob("*")) == 603


def test_a_broken_zip_is_one_clear_error(tmp_path):
    content = zipped({})[:-1000]
    with server(content) as (url, _, _), pytest.raises(DataError, match="cannot be unpacked"):
        get_archive(tmp_path, url=url, md5=hashlib.md5(content).hexdigest())
    assert not (tmp_path / "wnids.txt").exists()


def test_limits_are_checked(whole):
    with pytest.raises(InputError, match=r"train_limit must be a whole number in 1\.\.400"):
        tinyimagenet(whole, train_limit=401, test_limit=1)


def test_real_images_are_read(tinyimagenet_folder):
    data = tinyimagenet(tinyimagenet_folder, train_limit=400, test_limit=200)
    assert (data.classes, data.image_size, data.channels) == (200, (64, 64), 3)
    assert data.train.labels.bincount().tolist() == [2] * 200
    assert data.class_names[0] == "goldfish"
    pixels = data.train.images.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(data.mean, abs=0.03)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(data.std, abs=0.02)
    root = tinyimagenet_folder / "tiny-imagenet-200" / "train" / "n01443537" / "images"
    stored = {np.array(Image.open(root / p).convert("RGB")).tobytes() for p in os.listdir(root)}
    for image in data.train.images[data.train.labels == 0]:
        assert image.permute(1, 2, 0).numpy().tobytes() in stored
