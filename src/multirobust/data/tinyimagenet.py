"""Tiny-ImageNet from the folder that its official zip unpacks into."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from multirobust.data.augmentation import CropFlip
from multirobust.data.content import file_digest
from multirobust.data.datasets import Data, Split
from multirobust.data.decoded import decoded
from multirobust.data.download import download as fetch
from multirobust.data.download import unpack_zip
from multirobust.data.holdout import hold_out, limit_of_published, stratified_order
from multirobust.data.pictures import Form
from multirobust.data.places import folder_of, ways_to_get
from multirobust.errors import DataError

__all__ = ["get_archive", "tinyimagenet", "tinyimagenet_test"]

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
URL_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
WNIDS, WORDS, ANNOTATIONS = "wnids.txt", "words.txt", "val/val_annotations.txt"
CLASSES = 200
COUNTS = MappingProxyType({"train": 100_000, "test": 10_000})
FORM = Form(height=64, width=64, gray=False)
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2770, 0.2691, 0.2821)

WNID = re.compile(r"n\d{8}")
IMAGE = re.compile(r"val_\d+\.JPEG")
MEMBER = re.compile(
    rf"{FOLDER}/(wnids\.txt|words\.txt|val/val_annotations\.txt|val/images/val_\d+\.JPEG"
    r"|train/(n\d{8})/images/\2_\d+\.JPEG)"
)
"""The members of the official archive that are used."""


def tinyimagenet(
    folder: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    validation: int = 0,
    train_limit: int | None = None,
    test_limit: int | None = None,
    cache: bool = True,
) -> Data:
    """Load Tiny-ImageNet: 64 x 64 color images of 200 classes, 100,000 to train on.

    The 10,000 test images are those of the annotated folder `val`, as in the paper: the labels of
    the official test images were never published. Classes are in the order of their WordNet ids,
    as in torchvision's ImageFolder. Both parts are in a fixed stratified order, so that the first
    images are of all classes. Gray images become RGB. Training is augmented by pad-4 crops and
    flips. Mean and std are those of all training images, whatever the limit.

    A folder with fewer images than were published is used only if a limit says so.

    Args:
        folder: Holds `tiny-imagenet-200`, or is it. None means the folder that the environment
            variable MULTIROBUST_DATA names, or else the user's cache.
        download: Get the official zip (248 MB) into the folder and unpack it if it is missing.
        validation: Size of the validation split, a fixed stratified sample of the (limited)
            training images.
        train_limit: Read only the first so many training images.
        test_limit: Read only the first so many test images.
        cache: Keep the decoded images for the next start; see `decoded.decoded`.

    Raises:
        DataError: If a file is missing, damaged, of another form, or cannot be downloaded.
        InputError: If a size is larger than what there is, or Pillow is not installed.

    References:
        Le and Yang, Tiny ImageNet visual recognition challenge, Stanford CS 231N, 2015.
    """
    root = _root(folder, download)
    wnids = _wnids(root)
    found = _first(_train_files(root, wnids), "train", train_limit, root)
    whole, digest = _read(found, root, cache)
    test, _ = _read(_first(_test_files(root, wnids), "test", test_limit, root), root, cache)
    train, held_out = hold_out(whole, validation)
    return Data(
        "tinyimagenet",
        train,
        test,
        validation=held_out,
        class_names=_class_names(root, wnids),
        mean=MEAN,
        std=STD,
        augmentation=CropFlip(4),
        digest=file_digest(digest, whole.labels),
    )


def tinyimagenet_test(
    folder: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    test_limit: int | None = None,
    cache: bool = True,
) -> Split:
    """Load the test images alone; see `tinyimagenet`."""
    root = _root(folder, download)
    found = _first(_test_files(root, _wnids(root)), "test", test_limit, root)
    return _read(found, root, cache)[0]


def get_archive(root: Path, *, url: str = URL, md5: str = URL_MD5) -> None:
    """Download the official zip, unpack what is used of it into the folder, and delete it.

    Raises:
        DataError: If the download fails or is interrupted; the next call continues it.
    """
    archive = fetch(url, root, md5=md5)
    late = (WNIDS, WORDS, ANNOTATIONS)

    def member(name: str) -> str | None:
        match = MEMBER.fullmatch(name)
        return match[1] if match else None

    # The lists come last: where they are, the images are.
    unpack_zip(archive, root, lambda name: None if member(name) in late else member(name))
    unpack_zip(archive, root, lambda name: member(name) if member(name) in late else None)
    archive.unlink()


def _root(folder: str | os.PathLike[str] | None, download: bool) -> Path:
    root = folder_of(folder, FOLDER, [WNIDS])
    if download and not all((root / name).is_file() for name in (WNIDS, WORDS, ANNOTATIONS)):
        get_archive(root)
    return root


def _wnids(root: Path) -> tuple[str, ...]:
    """Return the WordNet ids of the classes, sorted."""
    found = [line.strip() for line in _lines(root / WNIDS)]
    wrong = [name for name in found if not WNID.fullmatch(name)]
    if wrong or len(set(found)) != CLASSES or len(found) != CLASSES:
        example = f", such as {wrong[0][:40]!r}" if wrong else ""
        raise DataError(
            f"Tiny-ImageNet: {root / WNIDS} must name {CLASSES} different classes like n01443537, "
            f"one a line, got {len(found)} lines{example}. Unpack the official zip again."
        )
    return tuple(sorted(found))


def _class_names(root: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """Return the first of the words for each class, with its id where two classes share them."""
    table = dict(line.split("\t", 1) for line in _lines(root / WORDS) if "\t" in line)
    words = [table.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return tuple(
        word if words.count(word) == 1 else f"{word} ({wnid})"
        for word, wnid in zip(words, wnids, strict=True)
    )


def _train_files(root: Path, wnids: Sequence[str]) -> list[tuple[Path, int]]:
    found = []
    for label, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        except OSError as error:
            raise DataError(
                f"Tiny-ImageNet: {folder} cannot be read ({error.strerror}); each class must have "
                "its folder of training images. Unpack the official zip again."
            ) from error
        found += [(folder / name, label) for name in names if name.endswith(".JPEG")]
    return found


def _test_files(root: Path, wnids: Sequence[str]) -> list[tuple[Path, int]]:
    place: Mapping[str, int] = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(root / ANNOTATIONS), start=1):
        name, wnid, *_ = [*line.split("\t"), "", ""]
        if not IMAGE.fullmatch(name) or wnid not in place or name in labels:
            problem = "an image that is there twice" if name in labels else repr(line[:60])
            raise DataError(
                f"Tiny-ImageNet: {root / ANNOTATIONS} must have a line for each image, its name "
                f"(val_0.JPEG), a tab and a class of {WNIDS}; line {number} is {problem}. Unpack "
                "the official zip again."
            )
        labels[name] = place[wnid]
    names = sorted(labels, key=lambda name: int(name[len("val_") : -len(".JPEG")]))
    return [(root / "val" / "images" / name, labels[name]) for name in names]


def _first(
    found: list[tuple[Path, int]], part: str, limit: int | None, root: Path
) -> list[tuple[Path, int]]:
    """Return the first files of the stratified order."""
    count = limit_of_published(
        f"{part}_limit",
        limit,
        len(found),
        published=COUNTS[part],
        where=f"Tiny-ImageNet: {root / ('train' if part == 'train' else 'val')}",
    )
    order = stratified_order(torch.tensor([label for _, label in found]), seed=0)
    return [found[i] for i in order[:count].tolist()]


def _read(found: list[tuple[Path, int]], root: Path, cache: bool) -> tuple[Split, str]:
    paths = [path for path, _ in found]
    content = decoded(paths, root, digest_of=len(paths), form=FORM, cache=cache)
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    return Split(content.images, labels, "tinyimagenet"), content.digest


def _lines(path: Path) -> list[str]:
    """Return the lines of one of the lists that are not empty."""
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        ways = ways_to_get(FOLDER, URL)
        raise DataError(f"Tiny-ImageNet: {path} is missing. {ways}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Tiny-ImageNet: {path} cannot be read ({error}).") from error
