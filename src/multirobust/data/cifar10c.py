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
from multirobust.errors import DataError, InputError, lookup_error

__all__ = ["cifar10c", "corrupted_images"]

SEVERITIES = 5
SHAPE = (32, 32, 3)
LABELS = "labels"
URL = "https://zenodo.org/records/2535967"


def cifar10c(
    folder: str | os.PathLike[str],
    corruption: str,
    severity: int,
    *,
    test: Split | None = None,
) -> Split:
    """Read one corruption at one severity of the published CIFAR-10-C.

    The folder holds `labels.npy` and, for each corruption, `<corruption>.npy`: uint8 of shape
    (5 n, 32, 32, 3), n being 10,000, the images of severity 1 first. CIFAR-100-C has the same form.
    Only the images that are asked for are read from disk.

    Args:
        folder: Where the files are.
        corruption: Name of a file, such as "fog".
        severity: 1 to 5.
        test: The clean split that the images belong to, to be compared by its labels; its first m
            images give the first m corrupted ones. None reads all.

    Raises:
        InputError: If there is no such corruption or severity.
        DataError: If a file is missing, truncated, of another shape or type, or labels differ.

    References:
        Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and
        perturbations, ICLR 2019.
    """
    labels = _labels(Path(folder).expanduser())
    if test is not None:
        _check_labels(labels, test, Path(folder))
    images = _images(Path(folder).expanduser(), corruption, severity, len(labels))
    count = len(labels) if test is None else len(test)
    pixels = torch.from_numpy(np.array(images[:count])).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.from_numpy(labels[:count]), source="cifar10")


def corrupted_images(
    folder: str | os.PathLike[str], corruption: str, severity: int, *, test: Split
) -> Tensor:
    """Return the corrupted images of a clean split, uint8 (n, 3, 32, 32), on its device.

    They are what an attack of stored images is made of. See `cifar10c` for arguments and errors.
    """
    return cifar10c(folder, corruption, severity, test=test).images.to(test.images.device)


def _labels(folder: Path) -> NDArray[np.int64]:
    """Return the labels (n,) of the images at each severity."""
    path = folder / f"{LABELS}.npy"
    stored = _opened(path)
    rule = f"CIFAR-10-C: {path} must hold integers of shape (5 n,), the same n labels five times"
    whole = np.issubdtype(stored.dtype, np.integer)
    if stored.ndim != 1 or not whole or not len(stored) or len(stored) % SEVERITIES:
        raise DataError(
            f"{rule}, got {stored.dtype} of shape {stored.shape}; download the data again."
        )
    blocks = np.array(stored, np.int64).reshape(SEVERITIES, -1)
    if (blocks != blocks[0]).any():
        raise DataError(f"{rule}, got others at another severity; download the data again.")
    return blocks[0]


def _images(folder: Path, corruption: str, severity: int, count: int) -> NDArray[np.uint8]:
    """Return the images (n, 32, 32, 3) of one severity, still on disk."""
    if isinstance(severity, bool) or severity not in range(1, SEVERITIES + 1):
        raise InputError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}.")
    known = {path.stem for path in folder.glob("*.npy")} - {LABELS}
    if corruption not in known:
        if known:
            raise lookup_error(f"corruption in {folder}", corruption, known)
        raise DataError(f"CIFAR-10-C: {folder} has no corruptions; get them from {URL}.")
    path = folder / f"{corruption}.npy"
    stored = _opened(path)
    shape = (SEVERITIES * count, *SHAPE)
    if stored.dtype != np.uint8 or stored.shape != shape:
        raise DataError(
            f"CIFAR-10-C: {path} must be uint8 of shape {shape}, five severities of the {count} "
            f"images that {LABELS}.npy has labels for, got {stored.dtype} of shape "
            f"{stored.shape}; download the data again."
        )
    return stored[(severity - 1) * count : severity * count]


def _opened(path: Path) -> NDArray[Any]:
    """Return the array of a file, memory-mapped."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(
            f"CIFAR-10-C: {path} is missing. Pass the folder that holds the published files "
            f"<corruption>.npy and {LABELS}.npy, from {URL}."
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"CIFAR-10-C: {path} is truncated or no array ({error}); download the data again."
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
