"""Data sets that stay uint8 on the device, and seeded batches of them that can start anywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from multirobust.checks import check_images, check_labels
from multirobust.data.augmentation import Augmentation, CropFlip
from multirobust.data.cifar10 import cifar10
from multirobust.data.cifar10c import cifar10c, corrupted_images
from multirobust.data.datasets import Data, Split
from multirobust.data.digits import digits
from multirobust.data.folders import class_names, image_folder, list_images, npz
from multirobust.data.loader import Batch, Loader
from multirobust.errors import InputError, lookup_error

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
    "cifar10c",
    "class_names",
    "corrupted_images",
    "digits",
    "image_folder",
    "list_images",
    "load_split",
    "npz",
]

DATASETS: Mapping[str, Callable[..., Data]] = MappingProxyType(
    {"cifar10": cifar10, "digits": digits}
)
"""Every data set by its name."""

_FEW = 1000
"""Training images that are read where only the test images are wanted."""


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


def load_split(
    spec: str | Path,
    *,
    folder: str | Path | None = None,
    download: bool = False,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> Split:
    """Load the images to evaluate on: a data set of ours, a folder of images, or an `.npz` file.

    Args:
        spec: A key of `DATASETS`, of which the test images are taken; or the path of a folder, see
            `image_folder`; or the path of an `.npz` file, see `npz`. A folder that is called like a
            data set is written with a slash, as in `./digits`.
        folder: Where a data set of ours lies, such as CIFAR-10.
        download: Get a data set of ours if it is missing.
        size: For a folder of images: scale and crop them.
        classes: For a folder of images: the names of the classes in the order of the logits.
        limit: Only the first so many images; more than there are means all.

    Returns:
        The images; `source` is the name of a data set of ours, and empty for one's own images,
        since nothing is known of their radii.

    Raises:
        InputError: If the spec is nothing of the three, or an argument is not for it.
        DataError: If the images are missing, damaged, or not what they should be.
    """
    given = {"folder": folder, "download": download or None, "size": size, "classes": classes}
    options = {name: value for name, value in given.items() if value is not None}
    spec, path = str(spec), Path(spec).expanduser()
    if spec in DATASETS:
        split = build(spec, train_limit=_FEW, **options).test
    elif path.suffix == ".npz":
        _only_for("an .npz file", options, ())
        split = npz(path)
    elif path.is_dir():
        _only_for("a folder of images", options, ("size", "classes"))
        return image_folder(path, size=size, classes=classes, limit=limit)
    else:
        known = lookup_error("data set", spec, DATASETS)
        raise InputError(f"{known} Or give the path of a folder of images, or of an .npz file.")
    return split if limit is None else split.first(min(limit, len(split)))


def _only_for(kind: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            raise InputError(
                f"{option} is not an argument for {kind}, got {options[option]!r}; leave it out."
            )
