"""CIFAR-10-C: the images of a severity, and an error for every way its files can be wrong."""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from local_server import server
from multirobust.attacks.corruptions import CORRUPTIONS as COMPUTED
from multirobust.config import load_recipe
from multirobust.data import Split, check_cifar10c
from multirobust.data.cifar10c import CORRUPTIONS, FILES, cifar10c, corrupted_images, get_files
from multirobust.errors import DataError, InputError
from multirobust.experiment import prepare
from multirobust.recipes import Study, load_reproduction, reproduce, scale_of

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


@pytest.fixture
def published(tmp_path):
    """A folder with every published file, six images each."""
    place = tmp_path / "DATA" / "CIFAR-10-C"
    place.mkdir(parents=True)
    for number, name in enumerate(CORRUPTIONS):
        np.save(place / f"{name}.npy", np.roll(PIXELS, number))
    np.save(place / "labels.npy", np.tile(LABELS, 5).astype(np.uint8))
    return place


def archive_of(folder: Path) -> bytes:
    """The files of a folder in the layout of the published archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, "CIFAR-10-C")
        note = tarfile.TarInfo("CIFAR-10-C/README.txt")
        archive.addfile(note, io.BytesIO(b""))
    return buffer.getvalue()


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


@pytest.mark.parametrize("name", ["fog", "labels"])
def test_an_archive_under_the_name_of_an_array_is_refused(folder, name):
    np.savez(folder / "other.npz", PIXELS)
    (folder / "other.npz").rename(folder / f"{name}.npy")
    with pytest.raises(DataError, match=rf"{name}\.npy is truncated or no array"):
        cifar10c(folder, "fog", 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_header_is_one_clear_error(folder, seed):
    path, generator = folder / "fog.npy", np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    for at in generator.integers(0, 80, 3):
        content[at] = generator.integers(256)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"^CIFAR-10-C: .*fog\.npy "):
        cifar10c(folder, "fog", 1)


def test_more_labels_than_were_published_and_negative_ones_are_refused(folder):
    np.save(folder / "labels.npy", np.zeros(50_005, np.uint8))
    with pytest.raises(DataError, match="n being at most 10,000"):
        cifar10c(folder, "fog", 1)
    np.save(folder / "labels.npy", np.tile(LABELS - 1, 5))
    with pytest.raises(DataError, match="got -1"):
        cifar10c(folder, "fog", 1)


def test_the_files_are_those_of_the_corruptions_that_are_computed():
    assert set(CORRUPTIONS) == set(COMPUTED)


def test_the_folder_may_be_that_of_all_data_sets(published, monkeypatch):
    direct = cifar10c(published, "fog", 2)
    assert torch.equal(cifar10c(published.parent, "fog", 2).images, direct.images)
    monkeypatch.setenv("MULTIROBUST_DATA", str(published.parent))
    assert torch.equal(cifar10c(None, "fog", 2).images, direct.images)


def test_an_interrupted_download_is_continued_and_unpacked(published, tmp_path):
    content, place = archive_of(published), tmp_path / "new" / "CIFAR-10-C"
    md5 = hashlib.md5(content).hexdigest()
    with server(content, stop_after=100_000) as (url, asked, mend):
        with pytest.raises(DataError, match=r"broke after 100,000 .* to continue"):
            get_files(place, url=url, md5=md5)
        mend()
        get_files(place, url=url, md5=md5)
        get_files(place, url=url, md5=md5)
        assert asked == [None, "bytes=100000-"]  # the third call found every file
        (place / "snow.npy").unlink()
        get_files(place, url=url, md5=md5)
        assert asked[2:] == [None]
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        path.name: path.read_bytes() for path in published.iterdir()
    }
    assert set(FILES) == {path.name for path in place.iterdir()}


def test_a_download_that_is_not_the_published_archive_is_refused(published, tmp_path):
    told = pytest.raises(DataError, match="must have MD5 56bf5dcef84df0e2308c6dcbcbbd8499")
    with server(archive_of(published)) as (url, _, _), told:
        get_files(tmp_path / "new", url=url)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.fixture
def downloads(published, monkeypatch):
    """Lead downloads to a server on this machine; yield the requests."""
    content = archive_of(published)
    with server(content) as (url, asked, _):
        place = {"url": url, "md5": hashlib.md5(content).hexdigest()}
        monkeypatch.setattr(
            sys.modules["multirobust.data.cifar10c"].get_files, "__kwdefaults__", place
        )
        yield asked


def test_download_gets_the_files_once(published, downloads, tmp_path):
    found = cifar10c(tmp_path / "new", "frost", 5, download=True)
    assert torch.equal(found.images, cifar10c(published, "frost", 5).images)
    check_cifar10c(tmp_path / "new", download=True)
    assert downloads == [None]
    told = r"CIFAR-10-C/labels\.npy is missing; .*--set data\.download=true"
    with pytest.raises(DataError, match=told):
        cifar10c(tmp_path / "other", "frost", 5)


def test_a_check_finds_the_one_file_that_is_missing_truncated_or_of_another_form(published):
    check_cifar10c(published)
    path = published / "zoom_blur.npy"
    whole = path.read_bytes()
    for content, words in (
        (whole[:-1], r"zoom_blur\.npy is truncated"),
        ((published / "labels.npy").read_bytes(), r"zoom_blur\.npy must be uint8 of shape"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            check_cifar10c(published)
    path.unlink()
    with pytest.raises(DataError, match=r"zoom_blur\.npy is missing; .*data\.download=true"):
        check_cifar10c(published)


SETTINGS = ("evaluation.suite=corruptions", "data.train_limit=64")


def test_a_recipe_whose_corruptions_are_missing_trains_nothing(tmp_path):
    told = r"CIFAR-10-C/labels\.npy is missing; .*data\.download=true"
    where = f"evaluation.corruptions={str(tmp_path / 'none')!r}"
    with pytest.raises(DataError, match=told):
        prepare(load_recipe("digits", [*SETTINGS, where]), tmp_path / "runs")
    study = Study(
        reproduction=load_reproduction("cifar10-c"),
        scale=scale_of("digits"),
        seeds=(0,),
        output=tmp_path / "runs",
        overrides=(*SETTINGS, where),
    )
    with pytest.raises(DataError, match=told):
        reproduce(study)
    assert not (tmp_path / "runs").exists()


def test_a_recipe_downloads_the_corruptions_that_it_is_evaluated_on(downloads, tmp_path):
    folder = tmp_path / "new"
    where = [f"evaluation.corruptions={str(folder)!r}", "data.download=true"]
    prepare(load_recipe("digits", [*SETTINGS, *where]), tmp_path / "runs")
    assert downloads == [None]
    assert {path.name for path in (folder / "CIFAR-10-C").iterdir()} == set(FILES)
    shutil.rmtree(folder)
    prepare(load_recipe("digits", [*where, "evaluation.suite=quick"]), tmp_path / "others")
    assert downloads == [None]  # another suite needs none
