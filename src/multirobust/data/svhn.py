"""SVHN, cropped digits of house numbers, from its published MATLAB files."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from multirobust.data.content import content_digest
from multirobust.data.datasets import Data, Split
from multirobust.data.download import download as fetch
from multirobust.data.holdout import hold_out, limit_of_published
from multirobust.data.places import GET_AGAIN, folder_of, ways_to_get
from multirobust.errors import DataError

__all__ = ["Part", "get_file", "read_mat", "svhn", "svhn_extra", "svhn_test"]

Part: TypeAlias = Literal["train", "test", "extra"]

URL = "http://ufldl.stanford.edu/housenumbers"
FOLDER = "svhn"
COUNTS = MappingProxyType({"train": 73_257, "test": 26_032, "extra": 531_131})
MD5 = MappingProxyType(
    {
        "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test": "eb5a983be6a315427106f1b164d9cef3",
        "extra": "a93ce644f1a588dc4d68dda5feec44a7",
    }
)
SHAPE = (32, 32, 3)
ZERO = 10
"""What the files call the digit 0."""
NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "single", "double")
MEAN = (0.4377, 0.4438, 0.4728)
STD = (0.1980, 0.2010, 0.1970)


def svhn(
    folder: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    validation: int = 0,
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> Data:
    """Load SVHN: 32 x 32 color images of ten digits, 73,257 to train on and 26,032 to test on.

    A file with fewer images than were published is used only if a limit says so. Label i is the
    digit i. There is no augmentation, as in the paper. Mean and std are those of all training
    images, whatever the limit.

    Args:
        folder: Holds `svhn` with `train_32x32.mat` and `test_32x32.mat`, or the files themselves.
            None means the folder that the environment variable MULTIROBUST_DATA names, or else the
            user's cache.
        download: Get a file (182 and 64 MB) into the folder if it is missing.
        validation: Size of the validation split, a fixed stratified sample of the (limited)
            training images.
        train_limit: Use only the first so many training images.
        test_limit: Use only the first so many test images.

    Raises:
        DataError: If a file is missing, damaged, of another form, or cannot be downloaded.
        InputError: If a size is larger than what there is.

    References:
        Netzer, Wang, Coates, Bissacco, Wu and Ng, Reading digits in natural images with
        unsupervised feature learning, NIPS workshop 2011.
    """
    test = svhn_test(folder, download=download, test_limit=test_limit)
    whole = _read("train", "train_limit", folder, train_limit, download)
    train, held_out = hold_out(whole, validation)
    return Data(
        "svhn",
        train,
        test,
        validation=held_out,
        class_names=tuple(str(digit) for digit in range(10)),
        mean=MEAN,
        std=STD,
        digest=content_digest(whole),
    )


def svhn_test(
    folder: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    test_limit: int | None = None,
) -> Split:
    """Load the test images alone; see `svhn`."""
    return _read("test", "test_limit", folder, test_limit, download)


def svhn_extra(
    folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    download: bool = False,
) -> Split:
    """Load the 531,131 extra images with their true labels, those of the file.

    The labels are no pseudo-labels: to train on these images as unlabeled ones, label them with a
    model. All of them take 1.6 GB, and twice that while they are read.

    Args:
        folder: As in `svhn`; the file is `extra_32x32.mat`.
        limit: Use only the first so many; None takes all and refuses a file that has fewer.
        download: Get the file (1.3 GB) into the folder if it is missing.

    Raises:
        DataError: As in `svhn`.
        InputError: If the limit is larger than what there is.
    """
    return _read("extra", "limit", folder, limit, download)


def get_file(part: Part, folder: Path, *, url: str = URL, md5: str | None = None) -> Path:
    """Return one of the files, downloaded if it is missing.

    Args:
        part: Which of them.
        folder: Where it lies.
        url: Address of the folder of the files.
        md5: Checksum of a download; None takes the published one.

    Raises:
        DataError: If the download fails or is interrupted; the next call continues it.
    """
    name = _name(part)
    if not (folder / name).is_file():
        fetch(f"{url}/{name}", folder, md5=md5 or MD5[part])
    return folder / name


def read_mat(path: Path, *, most: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (n, 3, 32, 32), still strided as in the file, and labels (n,) of one file.

    Only `X` and `y` are read, after the header of the file has said that they are of the published
    form. Nothing in such a file is code.

    Args:
        path: The file.
        most: Images that it may hold at most, so that a header cannot ask for any memory.

    Raises:
        DataError: If the file is missing, damaged, or of another form.
    """
    from scipy.io import loadmat

    count = _count(path, most)
    content = _parsed(path, lambda: loadmat(path, variable_names=["X", "y"]))
    images, labels = content["X"], content["y"].reshape(-1)
    if images.dtype != np.uint8 or images.shape != (*SHAPE, count) or labels.shape != (count,):
        raise _wrong(path, f"X is {images.dtype} of shape {images.shape}, y of {labels.shape}")
    whole = np.isin(labels, range(1, ZERO + 1))
    if not whole.all():
        raise DataError(
            f"SVHN: {path} must hold labels 1 to {ZERO}, {ZERO} being the digit 0, got "
            f"{labels[~whole][0]!s} at position {int(np.argmin(whole))}. Get the file again."
        )
    return images.transpose(3, 2, 0, 1), labels.astype(np.int64) % ZERO


def _read(
    part: Part,
    limit_name: str,
    folder: str | os.PathLike[str] | None,
    limit: int | None,
    download: bool,
) -> Split:
    place, published = folder_of(folder, FOLDER, [_name(p) for p in COUNTS]), COUNTS[part]
    path = get_file(part, place) if download else place / _name(part)
    images, labels = read_mat(path, most=published)
    count = limit_of_published(
        limit_name, limit, len(labels), published=published, where=f"SVHN: {path}"
    )
    pixels = np.ascontiguousarray(images[:count])
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels[:count].copy()), "svhn")


def _name(part: str) -> str:
    return f"{part}_32x32.mat"


def _count(path: Path, most: int) -> int:
    """Return the number of images that the header of a file declares."""
    from scipy.io import whosmat

    if not path.is_file():
        raise DataError(f"SVHN: {path} is missing. {ways_to_get('it', URL)}")
    declared = {name: (shape, kind) for name, shape, kind in _parsed(path, lambda: whosmat(path))}
    if not {"X", "y"} <= declared.keys():
        raise _wrong(path, f"it holds {', '.join(sorted(declared)) or 'nothing'}")
    (shape, kind), (rows, numbers) = declared["X"], declared["y"]
    count = shape[-1] if shape else 0
    columns = rows in ((count, 1), (1, count))
    if tuple(shape) != (*SHAPE, count) or kind != "uint8" or not columns or numbers not in NUMBERS:
        raise _wrong(path, f"X is {kind} of shape {shape}, y {numbers} of shape {rows}")
    if not 1 <= count <= most:
        raise DataError(f"SVHN: {path} must hold 1 to {most:,} images, got {count:,}.")
    return count


def _parsed(path: Path, parse: Any) -> Any:
    try:
        return parse()
    except Exception as error:  # SciPy raises a dozen kinds for a damaged file.
        raise DataError(
            f"SVHN: {path} is damaged, or no MATLAB file of version 5 ({type(error).__name__}: "
            f"{error}). Delete it and {GET_AGAIN}"
        ) from error


def _wrong(path: Path, found: str) -> DataError:
    return DataError(
        f"SVHN: {path} must hold X, uint8 of shape (32, 32, 3, n), and y of shape (n, 1); {found}. "
        f"Get the cropped digits ({Path(path).name}), not the full numbers."
    )
