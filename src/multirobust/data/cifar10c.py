"""CIFAR-10-C from its published files: every test image under 19 corruptions at five severities."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multirobust.data.datasets import Split
from multirobust.data.download import download as fetch
from multirobust.data.download import unpack
from multirobust.data.places import ENVIRONMENT, GET_AGAIN, folder_of
from multirobust.errors import DataError, InputError, lookup_error

__all__ = ["check_cifar10c", "cifar10c", "corrupted_images", "get_files"]

FOLDER = "CIFAR-10-C"
URL = "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar"
URL_MD5 = "56bf5dcef84df0e2308c6dcbcbbd8499"
"""As Zenodo lists it for record 2535967; TorchUncertainty's reader has the same."""

SEVERITIES = 5
IMAGES = 10_000
SHAPE = (32, 32, 3)
LABELS = "labels"
CORRUPTIONS = (
    "brightness",
    "contrast",
    "defocus_blur",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "saturate",
    "shot_noise",
    "snow",
    "spatter",
    "speckle_noise",
    "zoom_blur",
)
"""Those of the archive, a file each."""
FILES = tuple(f"{name}.npy" for name in (LABELS, *CORRUPTIONS))

_AGAIN = f"delete it and {GET_AGAIN}"
_WAY_OUT = (
    f"pass the folder that holds {FOLDER} (option `folder`, on the command line --set "
    f"evaluation.corruptions=PATH, or the environment variable {ENVIRONMENT}), or download=True "
    f"(on the command line --set data.download=true) to get it from {URL}."
)


def cifar10c(
    folder: str | os.PathLike[str] | None,
    corruption: str,
    severity: int,
    *,
    test: Split | None = None,
    download: bool = False,
) -> Split:
    """Read one corruption at one severity of the published CIFAR-10-C.

    The folder holds `labels.npy` and, for each corruption, `<corruption>.npy`: uint8 of shape
    (5 n, 32, 32, 3), n being 10,000, the images of severity 1 first. CIFAR-100-C has the same form.
    Only the images that are asked for are read from disk.

    Args:
        folder: Holds `CIFAR-10-C`, or is it. None means the folder that the environment variable
            MULTIROBUST_DATA names, or else the user's cache.
        corruption: Name of a file, such as "fog".
        severity: 1 to 5.
        test: The clean split that the images belong to, to be compared by its labels; its first m
            images give the first m corrupted ones. None reads all.
        download: Get the published archive (2.9 GB, and as much again while it is unpacked) into
            the folder if a file is missing.

    Raises:
        InputError: If there is no such corruption or severity.
        DataError: If a file is missing, truncated, of another shape or type, labels differ, or the
            files cannot be downloaded.

    References:
        Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and
        perturbations, ICLR 2019.
    """
    root = _root(folder, download)
    labels = _labels(root)
    if test is not None:
        _check_labels(labels, test, root)
    images = _images(root, corruption, severity, len(labels))
    count = len(labels) if test is None else len(test)
    pixels = torch.from_numpy(np.array(images[:count])).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.from_numpy(labels[:count]), source="cifar10")


def corrupted_images(
    folder: str | os.PathLike[str] | None, corruption: str, severity: int, *, test: Split
) -> Tensor:
    """Return the corrupted images of a clean split, uint8 (n, 3, 32, 32), on its device.

    They are what an attack of stored images is made of. See `cifar10c` for arguments and errors.
    """
    return cifar10c(folder, corruption, severity, test=test).images.to(test.images.device)


def check_cifar10c(folder: str | os.PathLike[str] | None, *, download: bool = False) -> None:
    """Make sure that every published file is there and of its form, without reading its pixels.

    See `cifar10c` for arguments and errors.
    """
    root = _root(folder, download)
    count = len(_labels(root))
    for corruption in CORRUPTIONS:
        _images(root, corruption, 1, count)


def get_files(folder: Path, *, url: str = URL, md5: str = URL_MD5) -> None:
    """Download the published archive if a file is missing, unpack it, and delete it.

    Raises:
        DataError: If the download fails or is interrupted; the next call continues it.
    """
    if all((folder / name).is_file() for name in FILES):
        return
    archive = fetch(url, folder, md5=md5)
    unpack(archive, folder, FILES)
    archive.unlink()


def _root(folder: str | os.PathLike[str] | None, download: bool) -> Path:
    root = folder_of(folder, FOLDER, FILES)
    if download:
        get_files(root)
    return root


def _labels(folder: Path) -> NDArray[np.int64]:
    """Return the labels (n,) of the images at each severity."""
    path = folder / f"{LABELS}.npy"
    stored = _opened(path)
    rule = (
        f"CIFAR-10-C: {path} must hold integers of shape (5 n,), the same n labels five times, n "
        f"being at most {IMAGES:,}"
    )
    whole = np.issubdtype(stored.dtype, np.integer) and stored.ndim == 1
    if not whole or not 1 <= len(stored) <= SEVERITIES * IMAGES or len(stored) % SEVERITIES:
        raise DataError(f"{rule}, got {stored.dtype} of shape {stored.shape}; {_AGAIN}")
    blocks = np.array(stored, np.int64).reshape(SEVERITIES, -1)
    if blocks.min() < 0:
        raise DataError(f"{rule}, got {blocks.min()}; {_AGAIN}")
    if (blocks != blocks[0]).any():
        raise DataError(f"{rule}, got others at another severity; {_AGAIN}")
    return blocks[0]


def _images(folder: Path, corruption: str, severity: int, count: int) -> NDArray[np.uint8]:
    """Return the images (n, 32, 32, 3) of one severity, still on disk."""
    if isinstance(severity, bool) or severity not in range(1, SEVERITIES + 1):
        raise InputError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}.")
    known = {path.stem for path in folder.glob("*.npy")} - {LABELS}
    if not known:
        raise DataError(f"CIFAR-10-C: {folder} has no corruptions; {_WAY_OUT}")
    if corruption not in known and corruption not in CORRUPTIONS:
        raise lookup_error(f"corruption in {folder}", corruption, known)
    path = folder / f"{corruption}.npy"
    stored = _opened(path)
    shape = (SEVERITIES * count, *SHAPE)
    if stored.dtype != np.uint8 or stored.shape != shape:
        raise DataError(
            f"CIFAR-10-C: {path} must be uint8 of shape {shape}, five severities of the {count} "
            f"images that {LABELS}.npy has labels for, got {stored.dtype} of shape "
            f"{stored.shape}; {_AGAIN}"
        )
    return stored[(severity - 1) * count : severity * count]


def _opened(path: Path) -> NDArray[Any]:
    """Return the array of a file, memory-mapped."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # which unpickles nothing
    except FileNotFoundError as error:
        raise DataError(f"CIFAR-10-C: {path} is missing; {_WAY_OUT}") from error
    except Exception as error:  # a foreign file can break the reader in any way
        raise DataError(
            f"CIFAR-10-C: {path} is truncated or no array ({error}); {_AGAIN}"
        ) from error


def _check_labels(labels: NDArray[np.int64], test: Split, folder: Path) -> None:
    if len(test) > len(labels):
        raise DataError(
            f"CIFAR-10-C: {folder} has {len(labels)} images at each severity, fewer than the "
            f"{len(test)} of the test split; limit the split to its first {len(labels)}."
        )
    wrong = int((labels[: len(test)] != test.labels.cpu().numpy()).sum())
    if wrong:
        raise DataError(
            f"CIFAR-10-C: the labels in {folder} must be those of the test split, in its order, "
            f"got {wrong} others among the first {len(test)}; use the official CIFAR-10 test "
            "images, neither shuffled nor sampled."
        )
