"""CIFAR-10 from its official pickles, which are read only if their checksums are the published."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from multirobust.data.augmentation import CropFlip
from multirobust.data.datasets import Data, Split
from multirobust.data.holdout import hold_out, limit
from multirobust.data.pickles import SHAPE, PickleArchive

__all__ = ["CIFAR10", "cifar10", "read_splits"]

CIFAR10 = PickleArchive(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    files=MappingProxyType(
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        }
    ),
)
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
BATCHES = 5
BATCH_IMAGES = 10_000
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def cifar10(
    folder: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    validation: int = 0,
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> Data:
    """Load CIFAR-10: 32 x 32 color images of ten classes, 50,000 to train on and 10,000 to test on.

    Only the files that the limits need are looked for: `data_batch_1` and `test_batch` are enough
    for 10,000 training images. Training is augmented by pad-4 crops and flips. Mean and std are
    those of all 50,000 training images, whatever the limit.

    Args:
        folder: Holds `cifar-10-batches-py`, or is it. None means the folder that the environment
            variable MULTIROBUST_DATA names, or else the user's cache.
        download: Get the official archive (170 MB) into the folder if a file is missing.
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
    train_count = limit("train_limit", train_limit, BATCHES * BATCH_IMAGES)
    test_count = limit("test_limit", test_limit, BATCH_IMAGES)
    pickles = CIFAR10.locate(folder)
    if download:
        CIFAR10.get(pickles, [*_train_files(train_count), "test_batch"])
    train, test = read_splits(pickles, train_limit=train_count, test_limit=test_count)
    train, held_out = hold_out(train, validation)
    return Data(
        "cifar10",
        train,
        test,
        validation=held_out,
        class_names=CLASS_NAMES,
        mean=MEAN,
        std=STD,
        augmentation=CropFlip(4),
    )


def read_splits(
    pickles: Path,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    archive: PickleArchive = CIFAR10,
    batch_images: int = BATCH_IMAGES,
) -> tuple[Split, Split]:
    """Read the training and test images from the folder of the pickles, no more files than needed.

    Args:
        pickles: Folder of `data_batch_1` and so on.
        train_limit: Number of training images, or None for all.
        test_limit: Number of test images, or None for all.
        archive: Says what checksum each file has.
        batch_images: Number of images in each file.

    Raises:
        DataError: If a file is missing or not the official one.
        InputError: If a limit is larger than what there is.
    """
    train_count = limit("train_limit", train_limit, BATCHES * batch_images)
    test_count = limit("test_limit", test_limit, batch_images)

    def read(names: list[str], count: int) -> Split:
        parts = [archive.images(pickles / name, batch_images) for name in names]
        pixels = np.concatenate([data for data, _ in parts])[:count].reshape(-1, *SHAPE)
        labels = np.concatenate([labels for _, labels in parts])[:count]
        return Split(torch.from_numpy(pixels), torch.from_numpy(labels))

    return read(_train_files(train_count, batch_images), train_count), read(
        ["test_batch"], test_count
    )


def _train_files(count: int, batch_images: int = BATCH_IMAGES) -> list[str]:
    return [f"data_batch_{i + 1}" for i in range(math.ceil(count / batch_images))]
