"""Data sets that stay uint8 on the device, and seeded batches of them that can start anywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from multirobust.catalog import EVALUATION_SETS
from multirobust.checks import check_images, check_labels
from multirobust.data.arrays import npz
from multirobust.data.augmentation import Augmentation, CropFlip
from multirobust.data.cifar10 import cifar10
from multirobust.data.cifar10c import check_cifar10c, cifar10c, corrupted_images
from multirobust.data.cifar100 import cifar100, cifar100_test
from multirobust.data.datasets import Data, Split
from multirobust.data.digits import digits
from multirobust.data.folders import class_names, image_folder, list_images
from multirobust.data.loader import Batch, Loader
from multirobust.data.own import own, test_part
from multirobust.data.svhn import svhn, svhn_extra, svhn_test
from multirobust.data.tinyimagenet import tinyimagenet, tinyimagenet_test
from multirobust.data.unlabeled import Unlabeled
from multirobust.errors import InputError, lookup_error

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batch",
    "CropFlip",
    "Data",
    "Loader",
    "Split",
    "Unlabeled",
    "build",
    "check_cifar10c",
    "check_images",
    "check_labels",
    "cifar10",
    "cifar10c",
    "cifar100",
    "class_names",
    "corrupted_images",
    "digits",
    "image_folder",
    "list_images",
    "load_split",
    "npz",
    "options_of",
    "own",
    "svhn",
    "svhn_extra",
    "tinyimagenet",
]

DATASETS: Mapping[str, Callable[..., Data]] = MappingProxyType(
    {
        "cifar10": cifar10,
        "cifar100": cifar100,
        "digits": digits,
        "svhn": svhn,
        "tinyimagenet": tinyimagenet,
    }
)
"""Every data set by its name."""

_TEST_ALONE: Mapping[str, tuple[Callable[..., Split], int]] = MappingProxyType(
    {
        "cifar100": (cifar100_test, 10_000),
        "svhn": (svhn_test, 26_032),
        "tinyimagenet": (tinyimagenet_test, 10_000),
    }
)
"""What reads the test images without the training images, where that saves much; how many."""

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
    known = options_of(name)
    for option in options:
        if option not in known:
            raise lookup_error(f"option of data set {name!r}", option, known)
    return DATASETS[name](**options)


def options_of(name: str) -> tuple[str, ...]:
    """Return the names of the arguments that a data set takes.

    Raises:
        InputError: If the name is unknown.
    """
    if name in EVALUATION_SETS:
        raise InputError(
            f"{name} has test images only; train on cifar10, and evaluate on it with the suite "
            "corruptions, or read it with multirobust.data.cifar10c."
        )
    if name not in DATASETS:
        raise lookup_error("data set", name, DATASETS)
    return tuple(inspect.signature(DATASETS[name]).parameters)


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
            `image_folder`; or of a folder to train on, see `own`, of which the test images are
            taken; or the path of an `.npz` file, see `npz`. A folder that is called like a data
            set is written with a slash, as in `./digits`.
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
    if spec in _TEST_ALONE:
        _only_for(f"the data set {spec}", options, ("folder", "download"))
        read, most = _TEST_ALONE[spec]
        split = read(**options, test_limit=limit and min(limit, most))
    elif spec in DATASETS:
        _only_for(f"the data set {spec}", options, options_of(spec))
        split = build(spec, train_limit=_FEW, **options).test
    elif path.suffix == ".npz":
        _only_for("an .npz file", options, ())
        split = npz(path)
    elif path.is_dir():
        _only_for("a folder of images", options, ("size", "classes"))
        part = test_part(path)
        if part is not None and classes is None:
            classes = class_names(path / "train")
        return image_folder(part or path, size=size, classes=classes, limit=limit)
    elif spec in EVALUATION_SETS:
        raise InputError(
            f"{spec} belongs to the suite corruptions: evaluate cifar10 with --suite corruptions "
            "and --set evaluation.corruptions=FOLDER, the folder of its published files; add "
            "--set data.download=true to get them."
        )
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
