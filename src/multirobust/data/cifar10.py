"""CIFAR-10 from its official pickles, which are read only if their checksums are the published."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multirobust.data.augmentation import CropFlip
from multirobust.data.datasets import Data, Split
from multirobust.data.download import download as fetch
from multirobust.data.download import unpack
from multirobust.data.holdout import hold_out, limit
from multirobust.errors import DataError

__all__ = ["CIFAR10_MD5", "cifar10", "get_archive", "read_pickle", "read_splits"]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
URL_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_MD5: Mapping[str, str] = MappingProxyType(
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    }
)
FOLDER = "cifar-10-batches-py"
ENVIRONMENT = "MULTIROBUST_DATA"
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
SHAPE = (3, 32, 32)
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
    pickles = _pickles(folder)
    wanted = [*_train_files(train_count), "test_batch"]
    if download and not all((pickles / name).is_file() for name in wanted):
        get_archive(pickles)
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


def get_archive(
    pickles: Path,
    *,
    url: str = URL,
    md5: str = URL_MD5,
    names: Collection[str] = CIFAR10_MD5,
) -> None:
    """Download the official archive, copy the pickles out of it, and delete it.

    Raises:
        DataError: If the download fails or is interrupted; the next call continues it.
    """
    archive = fetch(url, pickles, md5=md5)
    unpack(archive, pickles, names)
    archive.unlink()


def read_splits(
    pickles: Path,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    checksums: Mapping[str, str] = CIFAR10_MD5,
    batch_images: int = BATCH_IMAGES,
) -> tuple[Split, Split]:
    """Read the training and test images from the folder of the pickles, no more files than needed.

    Args:
        pickles: Folder of `data_batch_1` and so on.
        train_limit: Number of training images, or None for all.
        test_limit: Number of test images, or None for all.
        checksums: MD5 of each file.
        batch_images: Number of images in each file.

    Raises:
        DataError: If a file is missing or not the official one.
        InputError: If a limit is larger than what there is.
    """
    train_count = limit("train_limit", train_limit, BATCHES * batch_images)
    test_count = limit("test_limit", test_limit, batch_images)

    def read(names: list[str], count: int) -> Split:
        parts = [_batch(pickles / name, checksums[name], batch_images) for name in names]
        pixels = np.concatenate([data for data, _ in parts])[:count].reshape(-1, *SHAPE)
        labels = np.concatenate([labels for _, labels in parts])[:count]
        return Split(torch.from_numpy(pixels), torch.from_numpy(labels))

    return read(_train_files(train_count, batch_images), train_count), read(
        ["test_batch"], test_count
    )


def read_pickle(path: Path, md5: str) -> dict[str, Any]:
    """Return the dictionary in one of the official pickles, after its checksum has matched.

    The bytes that were hashed are the bytes that are read. Even then only NumPy arrays and plain
    values are made: any other name in the pickle is refused.

    Raises:
        DataError: If the file is missing, has another checksum, or names anything else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"CIFAR-10: {path} is missing. Pass the folder that holds {FOLDER} (option `folder` "
            f"or the environment variable {ENVIRONMENT}), or download=True to get it from {URL}."
        ) from error
    except OSError as error:
        raise DataError(f"CIFAR-10: {path} cannot be read ({error}).") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"CIFAR-10: {path} must have the published MD5 {md5}, got {found} ({len(content):,} "
            "bytes); it was not opened. Delete it and pass download=True, or copy it again."
        )
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"CIFAR-10: {path} is not one of the official pickles: {error}.") from error


class _ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays and nothing else, under the module names of NumPy 1 and 2."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _dtype,
        }
        package, _, last = module.rpartition(".")
        key = (last if package in ("numpy.core", "numpy._core") else module, name)
        if key not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[key]


def _dtype(code: str, align: int = 0, copy: int = 0) -> np.dtype[Any]:
    # Python 2 pickled both flags as integers, which NumPy 2.4 warns of.
    return np.dtype(code, align=bool(align), copy=bool(copy))


def _batch(path: Path, md5: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = read_pickle(path, md5)
    data: Any = content.get("data")
    labels: Any = content.get("labels")
    shape = (count, math.prod(SHAPE))
    arrays = isinstance(data, np.ndarray) and data.dtype == np.uint8 and isinstance(labels, list)
    if not arrays or data.shape != shape or len(labels) != count:
        raise DataError(
            f"CIFAR-10: {path} must hold `data`, uint8 of shape {shape}, and `labels`, a list of "
            f"{count}; it holds {sorted(content)}. Download the data again."
        )
    return data, np.array(labels, np.int64)


def _train_files(count: int, batch_images: int = BATCH_IMAGES) -> list[str]:
    return [f"data_batch_{i + 1}" for i in range(math.ceil(count / batch_images))]


def _pickles(folder: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the pickles: `folder/cifar-10-batches-py`, or the folder itself."""
    if folder is None:
        folder = os.environ.get(ENVIRONMENT) or _cache()
    root = Path(folder).expanduser()
    direct = root.name == FOLDER or any((root / name).is_file() for name in CIFAR10_MD5)
    return root if direct and not (root / FOLDER).is_dir() else root / FOLDER


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("multirobust"))
