"""CIFAR-100 from its official pickles, which are read only if their checksums are the published."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from multirobust.data.augmentation import CropFlip
from multirobust.data.datasets import Data, Split
from multirobust.data.holdout import hold_out, limit
from multirobust.data.pickles import SHAPE, PickleArchive
from multirobust.errors import DataError

__all__ = ["CIFAR100", "cifar100", "cifar100_test", "read_part"]

CIFAR100 = PickleArchive(
    title="CIFAR-100",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    files=MappingProxyType(
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        }
    ),
)
CLASSES = 100
COUNTS = MappingProxyType({"train": 50_000, "test": 10_000})
LABELS = "fine_labels"
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)


def cifar100(
    folder: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    validation: int = 0,
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> Data:
    """Load CIFAR-100: 32 x 32 color images of 100 classes, 50,000 to train and 10,000 to test on.

    The labels are the fine ones. Training is augmented by pad-4 crops and flips. Mean and std are
    those of all 50,000 training images, whatever the limit.

    Args:
        folder: Holds `cifar-100-python`, or is it. None means the folder that the environment
            variable MULTIROBUST_DATA names, or else the user's cache.
        download: Get the official archive (169 MB) into the folder if a file is missing.
        validation: Size of the validation split, a fixed stratified sample of the (limited)
            training images.
        train_limit: Use only the first so many training images.
        test_limit: Use only the first so many test images.

    Raises:
        DataError: If a file is missing, has another checksum, or cannot be downloaded.
        InputError: If a size is larger than what there is.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    train_count = limit("train_limit", train_limit, COUNTS["train"])
    test_count = limit("test_limit", test_limit, COUNTS["test"])
    pickles = CIFAR100.locate(folder)
    if download:
        CIFAR100.get(pickles, tuple(CIFAR100.files))
    train, held_out = hold_out(read_part(pickles, "train").first(train_count), validation)
    return Data(
        "cifar100",
        train,
        read_part(pickles, "test").first(test_count),
        validation=held_out,
        class_names=_class_names(pickles),
        mean=MEAN,
        std=STD,
        augmentation=CropFlip(4),
    )


def cifar100_test(
    folder: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    test_limit: int | None = None,
) -> Split:
    """Load the test images alone; see `cifar100`."""
    count = limit("test_limit", test_limit, COUNTS["test"])
    pickles = CIFAR100.locate(folder)
    if download:
        CIFAR100.get(pickles, ["test"])
    return read_part(pickles, "test").first(count)


def read_part(
    pickles: Path, part: str, *, archive: PickleArchive = CIFAR100, count: int | None = None
) -> Split:
    """Read the images of one of the pickles with their fine labels.

    Args:
        pickles: Folder of the pickles.
        part: "train" or "test".
        archive: Says what checksum each file has.
        count: Images that it must hold; None means as many as were published.

    Raises:
        DataError: If the file is missing or not the official one, or a label is no class.
    """
    path = pickles / part
    pixels, labels = archive.images(path, count or COUNTS[part], labels=LABELS)
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(
            f"CIFAR-100: {path} must hold `{LABELS}` in 0..{CLASSES - 1}, got {labels.min()} to "
            f"{labels.max()}. Download the data again."
        )
    return Split(torch.from_numpy(pixels).view(-1, *SHAPE), torch.from_numpy(labels), "cifar100")


def _class_names(pickles: Path) -> tuple[str, ...]:
    names: Any = CIFAR100.read(pickles / "meta").get("fine_label_names")
    if not isinstance(names, list) or len(names) != CLASSES:
        raise DataError(
            f"CIFAR-100: {pickles / 'meta'} must hold `fine_label_names`, a list of {CLASSES}. "
            "Download the data again."
        )
    return tuple(map(str, names))
