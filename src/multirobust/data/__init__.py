"""Data sets that stay uint8 on the device, and seeded batches of them that can start anywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from multirobust.checks import check_images, check_labels
from multirobust.data.augmentation import Augmentation, CropFlip
from multirobust.data.cifar10 import cifar10
from multirobust.data.datasets import Data, Split
from multirobust.data.digits import digits
from multirobust.data.loader import Batch, Loader
from multirobust.errors import lookup_error

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batch",
    "CropFlip",
    "Data",
    "Loader",
    "Split",
    "build",
    "check_images",
    "check_labels",
    "cifar10",
    "digits",
]

DATASETS: Mapping[str, Callable[..., Data]] = MappingProxyType(
    {"cifar10": cifar10, "digits": digits}
)
"""Every data set by its name."""


def build(name: str, **options: Any) -> Data:
    """Load a data set by its name.

    Args:
        name: A key of `DATASETS`.
        options: Arguments of that function, by name.

    Raises:
        InputError: If the name or an option is unknown.
        DataError: If the data are missing or not what they should be.
    """
    if name not in DATASETS:
        raise lookup_error("data set", name, DATASETS)
    known = inspect.signature(DATASETS[name]).parameters
    for option in options:
        if option not in known:
            raise lookup_error(f"option of data set {name!r}", option, known)
    return DATASETS[name](**options)
