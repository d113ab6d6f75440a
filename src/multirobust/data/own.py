"""Images of one's own to train on: a folder with two parts, or an `.npz` file with four arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from multirobust.data.arrays import read_arrays, split_of
from multirobust.data.content import content_digest, file_digest, pixel_statistics
from multirobust.data.datasets import Data, Split
from multirobust.data.decoded import decoded, decoded_on_disk
from multirobust.data.folders import class_names as subfolders
from multirobust.data.folders import list_images
from multirobust.data.holdout import hold_out, hold_out_rows, limit
from multirobust.errors import DataError, InputError

__all__ = ["own", "test_part"]

Files: TypeAlias = list[tuple[Path, int]]

TRAIN, TESTS = "train", ("test", "val")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NAMES = "class_names"


def own(
    path: str | Path,
    *,
    size: int | None = None,
    class_names: Sequence[str] | None = None,
    validation: int = 0,
    train_limit: int | None = None,
    test_limit: int | None = None,
    cache: bool = True,
    on_disk: bool = False,
) -> Data:
    """Load a data set of one's own.

    A folder holds `train` and `test` (or, if there is no `test`, `val`), each with a subfolder of
    images for each class; images, their order and `size` are as in `image_folder`. An `.npz` file
    holds `x_train`, `y_train`, `x_test` and `y_test`, of the form that `npz` takes, and optionally
    `class_names`, texts. Mean and std are those of the training images without those held out.
    There is no augmentation: which changes keep a label only the owner knows.

    Args:
        path: Of the folder, or of the file.
        size: For a folder: scale and crop the images.
        class_names: A name for each class in the order of the labels. None takes those of the
            file, or else the numbers; for a folder, the subfolders of `train` in sorted order.
        validation: Size of the validation split, a fixed stratified sample of the (limited)
            training images.
        train_limit: Use only the first so many training images.
        test_limit: Use only the first so many test images.
        cache: For a folder: keep the decoded images for the next start; see `decoded.decoded`.
        on_disk: For a folder that is larger than memory: never hold its images in memory, but read
            them from the cache as they are used, see `decoded.decoded_on_disk`.

    Returns:
        The data; `name` is the last part of the path, for a folder with a slash behind it, so
        that it is never that of a data set with known radii.

    Raises:
        DataError: If files are missing, damaged or not of this form.
        InputError: If an argument breaks its rule.
    """
    path = Path(path).expanduser()
    if path.suffix == ".npz":
        if size is not None:
            raise InputError(f"size is for folders of images, got {size!r} for {path}; drop it.")
        if on_disk:
            raise InputError(f"on_disk is for folders of images, got {path}; drop it.")
        name = path.name
        train, test, names, digest = _from_arrays(path, class_names, train_limit, test_limit)
        train, held_out = hold_out(train, validation)
    else:
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise InputError(f"size must be a whole number, 1 or more, or None, got {size!r}.")
        name = f"{path.resolve().name}/"
        names, (train_files, test_files) = _listed(path, class_names, train_limit, test_limit)
        read = _mapped if on_disk else partial(_read, cache=cache)
        train, held_out, test, content = read(path, train_files, test_files, size, validation)
        everything = torch.tensor([label for _, label in train_files])
        digest = file_digest(content, everything, len(names), size)
    mean, std = pixel_statistics(train)
    if not all(std):
        raise DataError(
            f"{path}: the pixels of channel {std.index(0)} must differ somewhere in the training "
            "images, all are the same; look at the images, or use more of them."
        )
    try:
        return Data(
            name,
            train,
            test,
            validation=held_out,
            class_names=names,
            mean=mean,
            std=std,
            digest=digest,
        )
    except InputError as error:
        raise DataError(f"{path}: {error}") from None


def test_part(folder: str | Path) -> Path | None:
    """Return the folder of the test images, if a folder has the parts that `own` takes."""
    root = Path(folder).expanduser()
    if not (root / TRAIN).is_dir():
        return None
    return next((root / name for name in TESTS if (root / name).is_dir()), None)


def _listed(
    root: Path, names: Sequence[str] | None, train_limit: int | None, test_limit: int | None
) -> tuple[tuple[str, ...], list[Files]]:
    """Return the classes of a folder, and the image files of either part."""
    test = test_part(root)
    if test is None:
        there = "is there" if root.is_dir() else "is no folder"
        raise DataError(
            f"{root} must hold the folders {TRAIN} and {TESTS[0]} (or {TESTS[1]}), each with a "
            f"subfolder of images for each class; it {there}, they are not. Or give the path of "
            "an .npz file."
        )
    names = tuple(names) if names is not None else subfolders(root / TRAIN)
    parts = []
    limits = (("train_limit", train_limit), ("test_limit", test_limit))
    for part, (name, value) in zip((root / TRAIN, test), limits, strict=True):
        found = list_images(part, classes=names)
        parts.append(found[: limit(name, value, len(found))])
    return names, parts


def _read(
    root: Path, train: Files, test: Files, size: int | None, validation: int, *, cache: bool
) -> tuple[Split, Split | None, Split, str]:
    """Return the images to train on, to hold out and to test on, and the digest of their files."""
    paths, labels = _columns([*train, *test])
    content = decoded(paths, root, digest_of=len(train), size=size, cache=cache)
    whole, count = Split(content.images, labels), len(train)
    kept, held_out = hold_out(whole.first(count), validation)
    return kept, held_out, Split(whole.images[count:], labels[count:]), content.digest


def _mapped(
    root: Path, train: Files, test: Files, size: int | None, validation: int
) -> tuple[Split, Split | None, Split, str]:
    """Do the same with a file that holds each of the three in one piece, so that none is copied."""
    paths, labels = _columns([*train, *test])
    kept, held_out = hold_out_rows(labels[: len(train)], validation)
    order = torch.cat([kept, held_out, torch.arange(len(train), len(paths))])
    places = order.argsort().tolist() if validation else None
    content = decoded_on_disk(paths, root, digest_of=len(train), size=size, places=places)
    sizes = [len(kept), len(held_out), len(test)]
    images, labels = content.images.split(sizes), labels[order].split(sizes)
    first, second, third = zip(images, labels, strict=True)
    return Split(*first), Split(*second) if validation else None, Split(*third), content.digest


def _columns(files: Files) -> tuple[list[Path], Tensor]:
    return [path for path, _ in files], torch.tensor([label for _, label in files])


def _from_arrays(
    path: Path, names: Sequence[str] | None, train_limit: int | None, test_limit: int | None
) -> tuple[Split, Split, tuple[str, ...], str]:
    def choose(there: Collection[str]) -> Sequence[str]:
        missing = [name for name in ARRAYS if name not in there]
        if missing:
            raise DataError(
                f"{path} must hold {', '.join(ARRAYS)}, and may hold {NAMES}; it lacks "
                f"{', '.join(missing)} and holds {', '.join(sorted(there)) or 'nothing'}."
            )
        return (*ARRAYS, *({NAMES} & set(there)))

    arrays = read_arrays(path, choose, example="x_train=..., y_train=..., x_test=..., y_test=...")
    train, test = whole = [
        split_of(arrays[i], arrays[i + 1], f"{path}: {ARRAYS[i]}, {ARRAYS[i + 1]}") for i in (0, 2)
    ]
    train = train.first(limit("train_limit", train_limit, len(train)))
    test = test.first(limit("test_limit", test_limit, len(test)))
    if names is None and len(arrays) > len(ARRAYS):
        stored = arrays[-1]
        if stored.ndim != 1 or not np.issubdtype(stored.dtype, np.str_):
            raise DataError(
                f"{path}: {NAMES} must be texts of shape (classes,), got {stored.dtype} of shape "
                f"{stored.shape}; save numpy.array(['cat', 'dog'])."
            )
        names = tuple(map(str, stored))
    if names is None:
        _check_every_class(torch.cat([split.labels for split in whole]), path)
        classes = int(max(train.labels.max(), test.labels.max())) + 1
        names = tuple(map(str, range(classes)))
    names = tuple(names)
    return train, test, names, content_digest(train, len(names))


def _check_every_class(labels: Tensor, path: Path) -> None:
    """Raise a DataError if a label up to the greatest is that of no image.

    A single wrong label would otherwise be believed, and stand for as many classes.
    """
    there = labels.unique()
    gaps = (there != torch.arange(len(there))).nonzero().flatten()
    if len(gaps):
        raise DataError(
            f"{path}: {ARRAYS[1]} and {ARRAYS[3]} must hold an image of every class from 0 to the "
            f"greatest label, {int(there[-1])}, where no {NAMES} are given; there is none of class "
            f"{int(gaps[0])}. Number the labels from 0 without gaps, or save {NAMES} in the file, "
            "a text for each class."
        )
