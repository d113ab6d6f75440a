"""Images of one's own as training data: folders with two parts, and `.npz` files of four arrays."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multirobust.data import load_split, own
from multirobust.errors import DataError, InputError, RunError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(30) % 2


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty training and ten test images of cats and dogs."""
    root = tmp_path / "pets"
    for i, (values, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        part = "train" if i < 20 else "test"
        write(root / part / ("cat", "dog")[label] / f"{i:02}.png", values)
    return root


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "pets.npz"
    np.savez(path, x_train=PIXELS[:20], y_train=LABELS[:20], x_test=PIXELS[20:], y_test=LABELS[20:])
    return path


def stored(part: slice) -> dict[bytes, int]:
    pairs = zip(PIXELS[part], LABELS[part], strict=True)
    return {values.tobytes(): int(label) for values, label in pairs}


def found(split) -> dict[bytes, int]:
    images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
    return {i.tobytes(): int(y) for i, y in zip(images, split.labels, strict=True)}


def test_a_folder_and_a_file_give_the_same_images(folder, file):
    for data, names in ((own(folder), ("cat", "dog")), (own(file), ("0", "1"))):
        assert found(data.train) == stored(slice(20))
        assert found(data.test) == stored(slice(20, None))
        assert data.class_names == names
        assert data.augmentation is None
    assert (own(folder).name, own(file).name) == ("pets/", "pets.npz")


def test_mean_and_std_are_those_of_the_training_images(folder, file):
    for path in (folder, file):
        data = own(path, validation=4)
        pixels = data.train.images.double() / 255
        assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(data.mean, abs=1e-12)
        assert pixels.std((0, 2, 3), correction=0).tolist() == pytest.approx(data.std, abs=1e-12)


def test_limits_and_validation_are_as_for_cifar10(folder, file):
    for path in (folder, file):
        whole = own(path)
        data = own(path, train_limit=12, test_limit=3, validation=4)
        assert [len(data.train), len(data.validation), len(data.test)] == [8, 4, 3]
        assert found(data.train) | found(data.validation) == found(whole.train.first(12))
        with pytest.raises(InputError, match=r"test_limit must be a whole number in 1\.\.10"):
            own(path, test_limit=11)


def test_the_digest_says_what_was_learned_from_and_not_where_it_lay(folder, file, tmp_path):
    for path in (folder, file):
        first = own(path).digest
        moved = tmp_path / "moved" / f"x{path.suffix}"
        moved.parent.mkdir(exist_ok=True)
        shutil.move(path, moved)
        assert own(moved, test_limit=2, validation=3).digest == first
        assert own(moved, train_limit=19).digest != first
        assert own(moved, class_names=["cat", "dog", "bird"]).digest != first
    write(moved.parent / "x" / "train" / "cat" / "00.png", PIXELS[1])
    assert own(moved.parent / "x").digest != first


def test_classes_may_be_named_and_ordered(folder, file, tmp_path):
    assert own(folder, class_names=["dog", "cat"]).test.labels.sum() == 5
    data = own(folder, class_names=["dog", "cat"])
    assert found(data.train) == {k: 1 - v for k, v in stored(slice(20)).items()}
    assert own(file, class_names=["cat", "dog"]).class_names == ("cat", "dog")
    arrays = dict(np.load(file)) | {"class_names": np.array(["Katze", "Hund"])}
    np.savez(tmp_path / "named.npz", **arrays)
    assert own(tmp_path / "named.npz").class_names == ("Katze", "Hund")


def test_val_is_the_test_part_where_there_is_no_other(folder):
    first = own(folder)
    os.rename(folder / "test", folder / "val")
    assert torch.equal(own(folder).test.images, first.test.images)


def test_images_are_scaled_if_asked_for_and_gray_only_if_all_are(folder):
    assert own(folder, size=4).train.images.shape == (20, 3, 4, 4)
    for path in (folder / "train").rglob("*.png"):
        write(path, np.array(Image.open(path).convert("L")))
    assert own(folder).train.images.shape == (20, 3, 8, 8)  # the test images are in color
    for path in (folder / "test").rglob("*.png"):
        write(path, np.array(Image.open(path).convert("L")))
    assert own(folder).train.images.shape == (20, 1, 8, 8)


def test_the_test_part_is_what_is_evaluated_on(folder):
    split, data = load_split(str(folder)), own(folder)
    assert found(split) == found(data.test)
    assert split.source == ""


def test_decoded_images_are_found_again_and_made_anew_when_a_file_changes(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("multirobust.data.decoded.FEW", 30)
    shelf = tmp_path / "cache" / "multirobust" / "decoded"
    first = own(folder)
    assert own(folder, cache=False).digest == first.digest
    assert len(list(shelf.iterdir())) == 1

    def never(*_, **__):
        raise AssertionError("a file was decoded again")

    with monkeypatch.context() as patch:
        patch.setattr("multirobust.data.decoded.decode", never)
        again = own(folder)
    assert again.digest == first.digest
    assert found(again.train) == found(first.train)
    again.train.images.zero_()  # a change in memory is none on the disk
    assert found(own(folder).train) == found(first.train)
    write(folder / "train" / "cat" / "00.png", PIXELS[0] // 2)
    changed = own(folder)
    assert changed.digest != first.digest
    assert len(list(shelf.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY junk", None])
def test_a_damaged_cache_is_made_anew(folder, tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("multirobust.data.decoded.FEW", 30)
    first = own(folder)
    (path,) = (tmp_path / "cache" / "multirobust" / "decoded").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] if content is None else content)
    assert found(own(folder).train) == found(first.train)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("validation", [0, 5])
def test_a_folder_on_the_disk_has_the_images_of_one_in_memory_and_copies_none(
    folder, tmp_path, monkeypatch, validation
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    limits = {"train_limit": 17, "test_limit": 6, "validation": validation}
    whole = own(folder, **limits, cache=False)
    for start in ("first", "second"):
        if start == "second":
            monkeypatch.setattr("multirobust.data.decoded.decode", None)  # nothing is decoded again
        mapped = own(folder, **limits, on_disk=True)
        assert (mapped.digest, mapped.mean, mapped.std) == (whole.digest, whole.mean, whole.std)
        files = set()
        for part in ("train", "validation", "test"):
            ours, theirs = getattr(mapped, part), getattr(whole, part)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert torch.equal(ours.images, theirs.images)
                assert torch.equal(ours.labels, theirs.labels)
                files.add(ours.images.untyped_storage().data_ptr())
        assert len(files) == 1
    (path,) = (tmp_path / "cache" / "multirobust" / "decoded").iterdir()
    assert np.load(path).shape == (23, 3, 8, 8)


def test_a_folder_on_the_disk_and_one_in_memory_share_what_is_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("multirobust.data.decoded.FEW", 30)
    first = own(folder, on_disk=True)
    monkeypatch.setattr("multirobust.data.decoded.decode", None)
    assert torch.equal(own(folder).train.images, first.train.images)


def test_a_folder_on_the_disk_needs_a_cache_that_can_be_written(
    folder, file, tmp_path, monkeypatch
):
    (tmp_path / "cache").write_text("a file, no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RunError, match="cannot be written"):
        own(folder, on_disk=True)
    with pytest.raises(InputError, match="on_disk is for folders of images"):
        own(file, on_disk=True)


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("multirobust.data.decoded.FEW", 30)
    assert len(own(folder).train) == 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": None}, "lacks x_train"),
        ({"y_train": np.zeros(19, int)}, "x_train, y_train: labels must be"),
        ({"y_train": np.zeros(20, int)}, "images of two classes or more"),
        ({"x_test": PIXELS[20:, :4]}, "the shape of the training images"),
        ({"x_train": PIXELS[:20] * 0}, "channel 0 must differ"),
        ({"y_test": np.full(10, -1)}, "x_test, y_test: labels"),
        ({"x_train": np.array([{}] * 20)}, "Python objects"),
        ({"x_train": PIXELS[:20] / 100}, r"must lie in \[0, 1\]"),
        ({"class_names": np.array([1, 2])}, "class_names must be texts"),
        ({"class_names": np.array(["a"])}, "two classes or more"),
        ({"class_names": np.array(["a", "b"]), "y_test": np.full(10, 2)}, r"in 0\.\.1"),
    ],
)
def test_arrays_of_another_form_are_one_clear_error(file, changes, words):
    arrays = {k: v for k, v in (dict(np.load(file)) | changes).items() if v is not None}
    np.savez(file, **arrays)
    with pytest.raises(DataError, match=words) as caught:
        own(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("wrong", "missing"), [(10**12, 2), (10**6, 2), (3, 2), (2**63 - 1, 2)])
def test_a_label_that_leaves_classes_without_images_takes_no_memory(file, wrong, missing):
    labels = LABELS[:20].copy()
    labels[7] = wrong
    np.savez(file, **dict(np.load(file)) | {"y_train": labels})
    rule = rf"pets\.npz: y_train and y_test .* {wrong}, .*none of class {missing}\. .*class_names"
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rule):
            own(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(DataError, match=rf"in 0\.\.1, got values .*{wrong}"):
        own(file, class_names=["cat", "dog"])


def test_a_negative_label_and_labels_that_start_at_one_are_one_clear_error(file):
    arrays = dict(np.load(file))
    np.savez(file, **arrays | {"y_train": -LABELS[:20]})
    with pytest.raises(DataError, match=r"x_train, y_train: labels .* got values from -1"):
        own(file)
    np.savez(file, **arrays | {"y_train": 1 + LABELS[:20], "y_test": 1 + LABELS[20:]})
    with pytest.raises(DataError, match=r"label, 2, .*none of class 0\. Number the labels from 0"):
        own(file)


def test_a_class_may_be_missing_in_one_part_or_named_without_any_image(file):
    arrays = dict(np.load(file))
    np.savez(file, **arrays | {"y_train": np.arange(20) % 3, "y_test": np.full(10, 3)})
    assert own(file).class_names == ("0", "1", "2", "3")
    assert own(file, train_limit=2, test_limit=1).class_names == ("0", "1", "2", "3")
    np.savez(file, **arrays | {"y_train": np.arange(20) % 2 * 2})
    assert own(file, class_names=["cat", "dog", "bird"]).classes == 3
    np.savez(file, **arrays | {"y_train": np.arange(20) % 2 * 3, "class_names": [*"abcd"]})
    assert own(file).classes == 4


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"text"])
def test_a_file_that_is_no_npz_is_one_clear_error(file, content):
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is no \.npz file, or damaged"):
        own(file)


def test_a_folder_of_another_form_is_one_clear_error(folder, tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        own(tmp_path / "nowhere")
    with pytest.raises(DataError, match="must hold the folders train and test"):
        own(folder / "train")
    write(folder / "test" / "bird" / "a.png", PIXELS[0])
    with pytest.raises(InputError, match="got none for 'bird'"):
        own(folder)
    shutil.rmtree(folder / "test" / "bird")
    (folder / "train" / "dog" / "01.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"01\.png cannot be read as an image"):
        own(folder)
    write(folder / "train" / "dog" / "01.png", PIXELS[1, :4])
    with pytest.raises(DataError, match="must be of one size"):
        own(folder)


def test_size_is_checked_and_only_for_folders(folder, file):
    with pytest.raises(InputError, match="size must be a whole number"):
        own(folder, size=0)
    with pytest.raises(InputError, match="size is for folders"):
        own(file, size=4)
