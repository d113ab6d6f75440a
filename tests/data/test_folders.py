"""Image folders and `.npz` files made on the fly, and the one function that loads any images."""

from __future__ import annotations

import struct
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from multirobust.data import (
    build,
    class_names,
    image_folder,
    list_images,
    load_split,
    npz,
    untrusted,
)
from multirobust.errors import DataError, InputError


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, values: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten color images of three classes; the seed of an image is its number."""
    names = ["cat"] * 5 + ["dog"] * 3 + ["apple"] * 2
    for seed, name in enumerate(names):
        write(tmp_path / "set" / name / f"{seed}.png", pixels(seed, 6, 4, 3))
    return tmp_path / "set"


# Folders


def test_a_folder_is_read_pixel_for_pixel_with_sorted_names_as_labels(folder):
    split, listed = image_folder(folder), list_images(folder)
    assert class_names(folder) == ("apple", "cat", "dog")
    assert split.images.shape == (10, 3, 6, 4)
    assert split.source == ""
    assert len({path for path, _ in listed}) == 10
    for image, label, (path, listed_label) in zip(
        split.images, split.labels.tolist(), listed, strict=True
    ):
        expected = torch.from_numpy(pixels(int(path.stem), 6, 4, 3)).permute(2, 0, 1)
        assert torch.equal(image, expected)
        assert class_names(folder)[label] == path.parent.name
        assert label == listed_label


def test_the_first_images_are_of_all_classes_in_proportion(folder):
    for count in range(1, 11):
        labels = Counter(image_folder(folder, limit=count).labels.tolist())
        for label, total in ((0, 2), (1, 5), (2, 3)):
            assert abs(labels[label] - count * total / 10) < 1
    assert len(image_folder(folder, limit=99)) == 10
    assert torch.equal(image_folder(folder, limit=4).images, image_folder(folder).images[:4])


def test_given_classes_decide_the_labels(folder):
    split = image_folder(folder, classes=["zebra", "dog", "cat", "apple"])
    assert Counter(split.labels.tolist()) == {2: 5, 1: 3, 3: 2}
    with pytest.raises(InputError, match=r"got none for 'cat'. Did you mean 'cats'"):
        image_folder(folder, classes=["apple", "cats", "dog"])


def test_files_at_any_depth_and_of_every_format_count_and_others_do_not(tmp_path):
    gray = np.full((4, 4), 7, np.uint8)
    for name in ("a.png", "b.BMP", "c.webp", "d.jpg", "e.JPEG", "deep/down/f.tif", "g.pgm"):
        write(tmp_path / "one" / name, gray)
    write(tmp_path / "two" / "a.png", gray)
    for name in ("one/._a.png", "two/notes.txt", ".cache/a.png", "top.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    assert len(list_images(tmp_path)) == 8
    assert class_names(tmp_path) == ("one", "two")
    write(tmp_path / "one" / "c.webp", np.full((4, 4, 3), 7, np.uint8))
    assert len(image_folder(tmp_path)) == 8


def test_images_are_gray_only_if_all_are(tmp_path):
    one, two = tmp_path / "a" / "1.png", tmp_path / "b" / "2.png"
    write(one, pixels(0, 4, 4))
    write(two, pixels(1, 4, 4) // 128 * 255, "1")
    split = image_folder(tmp_path)
    by_label = split.images[split.labels.argsort()]
    assert torch.equal(by_label[0, 0], torch.from_numpy(pixels(0, 4, 4)))
    assert torch.equal(by_label[1, 0], torch.from_numpy(pixels(1, 4, 4) // 128 * 255))
    write(two, pixels(1, 4, 4, 3))
    split = image_folder(tmp_path)
    by_label = split.images[split.labels.argsort()]
    assert torch.equal(by_label[0], torch.from_numpy(pixels(0, 4, 4)).expand(3, 4, 4))
    write(two, pixels(1, 4, 4, 4))  # RGBA
    split = image_folder(tmp_path)
    by_label = split.images[split.labels.argsort()]
    assert torch.equal(by_label[1], torch.from_numpy(pixels(1, 4, 4, 4))[..., :3].permute(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 61), (53, 40)])
def test_size_scales_the_shorter_side_antialiased_and_cuts_the_center(tmp_path, height, width):
    values = pixels(0, height, width, 3)
    for name in ("a/1.png", "b/2.png"):
        write(tmp_path / name, values)
    size = 16
    split = image_folder(tmp_path, size=size)
    assert split.images.shape == (2, 3, size, size)
    scaled = interpolate(
        torch.from_numpy(values).permute(2, 0, 1)[None].double(),
        size=(height * size // 40, width * size // 40),
        mode="bilinear",
        antialias=True,
    )
    top, left = (round((side - size) / 2) for side in scaled.shape[2:])
    expected = scaled[0, :, top : top + size, left : left + size]
    # Pillow rounds to bytes after each of the two passes.
    assert (split.images[0].double() - expected).abs().max() <= 1.5


def test_images_that_have_the_size_are_left_as_they_are(folder, tmp_path):
    write(tmp_path / "square" / "a" / "1.png", pixels(3, 6, 6, 3))
    expected = torch.from_numpy(pixels(3, 6, 6, 3)).permute(2, 0, 1)
    assert torch.equal(image_folder(tmp_path / "square", size=6).images[0], expected)


def test_mixed_sizes_are_counted(folder):
    write(folder / "dog" / "odd.png", pixels(0, 5, 9, 3))
    message = r"one size, got 2: 4x6 \(10, such as \d.png\), 9x5 \(1, such as odd.png\); give a"
    with pytest.raises(DataError, match=message):
        image_folder(folder)
    assert len(image_folder(folder, size=4)) == 11


@pytest.mark.parametrize("cut", [0, 20, 60])
def test_a_damaged_image_is_named(folder, cut):
    path = folder / "dog" / "5.png"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"dog/5.png cannot be read as an image"):
        image_folder(folder)


def test_images_of_16_bits_are_refused(folder):
    Image.fromarray(np.zeros((6, 4), np.uint16)).save(folder / "dog" / "deep.png")
    with pytest.raises(DataError, match=r"deep.png must have 8 bits a channel.*'I;16'"):
        image_folder(folder)


def test_a_folder_without_images_is_told_apart(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        image_folder(tmp_path / "nothing")
    with pytest.raises(DataError, match="has no subfolders"):
        image_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"holds no images in its subfolders \(cat\)"):
        image_folder(tmp_path)


@pytest.mark.parametrize("value", [0, -3, True])
def test_size_and_limit_are_whole_numbers_from_one(folder, value):
    for name in ("size", "limit"):
        with pytest.raises(InputError, match=f"{name} must be a whole number"):
            image_folder(folder, **{name: value})


def test_without_pillow_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pip install 'multirobust\[corruptions\]'"):
        image_folder(folder)


# Arrays


@pytest.mark.parametrize(
    "names",
    [
        ("images", "labels"),
        ("x", "y"),
        ("x_test", "y_test"),
        ("test_images", "test_labels"),
        ("data", "labels"),
    ],
)
@pytest.mark.parametrize("shape", [(7, 5, 6, 3), (7, 3, 5, 6), (7, 5, 6, 1), (7, 5, 6)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_arrays_are_read_exactly_whatever_their_form(tmp_path, names, shape, kind):
    values, labels = pixels(0, *shape), np.arange(7, dtype=np.uint8) % 3
    stored = values if kind == np.uint8 else (values / 255).astype(kind)
    extra = {"x_train": values} if names[0] == "x_test" else {}
    np.savez(tmp_path / "a.npz", **{names[0]: stored, names[1]: labels}, **extra)
    split = npz(tmp_path / "a.npz")
    expected = {(5, 6, 3): (0, 3, 1, 2), (3, 5, 6): (0, 1, 2, 3), (5, 6, 1): (0, 3, 1, 2)}
    want = values[:, None] if values.ndim == 3 else values.transpose(expected[shape[1:]])
    assert torch.equal(split.images, torch.from_numpy(want.copy()))
    assert split.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert split.source == ""


def test_labels_in_a_column_are_taken(tmp_path):
    np.savez(tmp_path / "a.npz", x=pixels(0, 4, 5, 5, 3), y=np.array([[1], [0], [2], [1]]))
    assert npz(tmp_path / "a.npz").labels.tolist() == [1, 0, 2, 1]


def test_every_byte_survives_the_way_through_floats(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for kind in (np.float32, np.float64):
        np.savez(tmp_path / "a.npz", x=(values / 255).astype(kind), y=[0])
        assert torch.equal(npz(tmp_path / "a.npz").images[0], torch.from_numpy(values))


IMAGES, LABELS = pixels(0, 4, 5, 5, 3), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES / 255 + 1e-5 * (IMAGES < 255), "y": LABELS}, r"multiples of 1/255.*1e-05"),
        ({"x": (IMAGES / 255).astype(np.float16), "y": LABELS}, "multiples of 1/255"),
        ({"x": IMAGES.astype(float), "y": LABELS}, "must lie in .0, 1., got values from 0"),
        ({"x": IMAGES / 255 - 0.5, "y": LABELS}, "got values from -0.5"),
        ({"x": np.full((4, 5, 5, 3), np.nan), "y": LABELS}, "got values from nan"),
        ({"x": IMAGES.astype(int), "y": LABELS}, "must be a uint8 tensor.*int64"),
        ({"x": IMAGES, "y": LABELS[:3]}, "got 3 labels for 4 images"),
        ({"x": IMAGES, "y": LABELS / 1.0}, "int64 tensor of shape"),
        ({"x": IMAGES, "y": np.eye(4, dtype=int)}, "one-hot"),
        ({"x": IMAGES, "y": LABELS - 1}, "got values from -1"),
        ({"x": IMAGES[..., 0, 0], "y": LABELS}, "reshape them"),
        ({"x": pixels(0, 4, 5, 5, 4), "y": LABELS}, "neither is"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "hold at least one"),
        ({"pictures": IMAGES, "y": LABELS}, "holds no pair of them, namely pictures, y"),
        ({"x": IMAGES, "images": IMAGES, "y": LABELS, "labels": LABELS}, "several pairs"),
        ({"x": np.array([None, 3]), "y": LABELS}, "holds Python objects"),
    ],
)
def test_each_wrong_array_is_one_error_that_names_the_file(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=rf"(?s)a\.npz.*{message}"):
        npz(tmp_path / "a.npz")


def test_the_layout_may_be_given_where_the_shape_is_ambiguous(tmp_path):
    values = pixels(0, 2, 3, 4, 3)
    np.savez(tmp_path / "a.npz", x=values, y=[0, 1])
    with pytest.raises(DataError, match="both could be"):
        npz(tmp_path / "a.npz")
    assert npz(tmp_path / "a.npz", layout="nhwc").images.shape == (2, 3, 3, 4)
    assert npz(tmp_path / "a.npz", layout="nchw").images.shape == (2, 3, 4, 3)


def test_a_file_that_is_missing_damaged_or_of_another_kind_is_one_error(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="is missing"):
        npz(path)
    np.savez_compressed(path, x=IMAGES, y=LABELS)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[120:140] = bytes(20)
    for content in (b"", b"hello", whole[:100], whole[:-30], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is no \.npz file, or damaged") as caught:
            npz(path)
        assert "pickle" not in str(caught.value)  # no advice to load what may run code
    with path.open("wb") as stream:
        np.save(stream, IMAGES)
    with pytest.raises(DataError, match=r"is no \.npz file, or damaged"):
        npz(path)


def write_archive(path: Path, shape: str, content: bytes) -> None:
    """Write images whose header says this shape, of uint8, and a label."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", head + content)
        with archive.open("y.npy", "w") as stream:
            np.save(stream, np.array([0]))


def test_a_header_that_claims_more_bytes_than_there_are_takes_no_memory(tmp_path):
    write_archive(tmp_path / "a.npz", "(1000000000, 8, 8, 3)", bytes(100))
    with pytest.raises(DataError, match=r"a\.npz is no .*192,000,000,000 bytes, 100 are there"):
        npz(tmp_path / "a.npz")


def test_arrays_that_unpack_to_more_than_the_memory_are_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((100, 32, 32, 3), np.uint8), y=np.zeros(100, int))
    assert path.stat().st_size < 2000
    assert len(npz(path)) == 100
    monkeypatch.setattr(untrusted, "_exactly", None)  # nothing is unpacked
    for most in (1 << 18, 100 * 32 * 32 * 3):  # the images alone do not fit; with the labels
        monkeypatch.setattr(untrusted, "memory_limit", lambda most=most: most)
        with pytest.raises(DataError, match=r"a\.npz needs .* GiB of memory, at most .*fewer"):
            npz(path)


def test_images_stored_by_columns_or_in_another_byte_order_are_taken(tmp_path):
    labels = LABELS.astype(LABELS.dtype.newbyteorder())
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(IMAGES), y=labels)
    split = npz(tmp_path / "a.npz")
    assert torch.equal(split.images, torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()))
    assert split.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("kind", ["U3", "datetime64[s]", [("a", "u1")], "complex64", "V2", "bool"])
def test_values_that_are_no_numbers_of_ours_are_one_error(tmp_path, kind):
    for name in ("x", "y"):
        arrays = {"x": IMAGES, "y": LABELS}
        arrays[name] = np.zeros(arrays[name].shape, kind)
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=r"a\.npz: (images|labels) must be"):
            npz(tmp_path / "a.npz")


# Any of them


def test_one_function_loads_a_data_set_a_folder_or_a_file(folder, tmp_path, monkeypatch):
    digits = load_split("digits", limit=20)
    assert digits.source == "digits"
    assert torch.equal(digits.images, build("digits").test.images[:20])
    assert len(load_split("digits", limit=9999)) == 500
    assert torch.equal(load_split(folder).images, image_folder(folder).images)
    assert load_split(str(folder), size=4, limit=3).images.shape == (3, 3, 4, 4)
    labels = load_split(str(folder), classes=["dog", "cat", "apple"]).labels
    assert labels.bincount().tolist() == [3, 5, 2]
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    assert torch.equal(load_split(str(tmp_path / "a.npz")).images, npz(tmp_path / "a.npz").images)
    assert len(load_split(str(tmp_path / "a.npz"), limit=2)) == 2
    folder.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load_split("digits").source == "digits"
    assert load_split("./digits").source == ""


def test_cifar10_is_read_from_its_folder(cifar10_folder):
    split = load_split("cifar10", folder=cifar10_folder, limit=30)
    assert split.images.shape == (30, 3, 32, 32)
    assert split.source == "cifar10"


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(
        InputError, match=r"Unknown data set: 'cifar11'.*'cifar10'.*Or give the path"
    ):
        load_split("cifar11")
    with pytest.raises(InputError, match="folder is not an argument for the data set digits"):
        load_split("digits", folder=tmp_path)
    with pytest.raises(InputError, match="folder is not an argument for a folder of images"):
        load_split(str(folder), folder=tmp_path)
    with pytest.raises(InputError, match=r"size is not an argument for an .npz file, got 4"):
        load_split("a.npz", size=4)
