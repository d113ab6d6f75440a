"""Files of pseudo-labeled images: those that papers published, and our own.

A label that a model has guessed is no truth, and a true label is no guess: files of truly labeled
images are refused here, so that none is used as if a model had found it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multirobust.data.datasets import Split
from multirobust.data.holdout import limit as limited
from multirobust.data.places import ENVIRONMENT
from multirobust.data.svhn import svhn_extra
from multirobust.data.untrusted import (
    array_names,
    array_shape,
    read_array,
    read_arrays_pickle,
    read_text,
)
from multirobust.errors import DataError, InputError, MultirobustError
from multirobust.files import atomic_write

__all__ = ["PUBLISHED_PICKLE", "pseudo_labeled", "read_provenance", "save_pseudo_labels"]

PUBLISHED_PICKLE = "ti_500K_pseudo_labeled.pickle"
"""The 500,000 Tiny Images that Carmon et al. labeled for CIFAR-10."""

SVHN_EXTRA, TRUE_LABELS = "svhn_extra", ":true_labels"
FORMAT, VERSION = "multirobust pseudo-labels", 1
IMAGES, LABELS, PROVENANCE = "image", "label", "provenance"
PICKLES = (".pickle", ".pkl")
HOW = (
    "To label images with a model, run `multirobust pseudo-label RUN DATA --output FILE.npz` and "
    "set data.unlabeled to that file."
)


def pseudo_labeled(
    source: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Split:
    """Load images with the labels that a model has guessed.

    Args:
        source: One of

            - an `.npz` file with `image`, uint8 of shape (n, h, w, c), and `label`, whole numbers
              of shape (n,): ours, or the generated images of Rebuffi et al. and Wang et al. Only
              the images that the limit leaves are read;
            - a `.pickle` with `data` and `extrapolated_targets` of the same form, as Carmon et al.
              published; nothing in it is run;
            - "svhn_extra:true_labels": the extra images of SVHN with their true labels. That is
              no self-training, but it is what the code of the MNG-AC paper does.
        folder: Where a file is looked for that is not found from the working folder, and where the
            data set of SVHN lies. None takes the environment variable MULTIROBUST_DATA.
        limit: Only the first so many images.

    Raises:
        DataError: If the file is missing, damaged, larger than memory, or of another form.
        InputError: If the source is a truly labeled data set, or the limit more than there is.

    References:
        Carmon, Raghunathan, Schmidt, Liang and Duchi, Unlabeled data improves adversarial
        robustness, NeurIPS 2019. Rebuffi, Gowal, Calian, Stimberg, Wiles and Mann, Fixing data
        augmentation to improve adversarial robustness, 2021. Wang, Pang, Du, Lin, Liu and Yan,
        Better diffusion models further improve adversarial training, ICML 2023.
    """
    text = os.fspath(source)
    if text == SVHN_EXTRA + TRUE_LABELS:
        return svhn_extra(folder, limit=limit)
    if text == SVHN_EXTRA or text.endswith(TRUE_LABELS):
        raise InputError(
            f"unlabeled: {text!r} would use true labels as if a model had guessed them. {HOW} "
            f"Only {SVHN_EXTRA + TRUE_LABELS!r} uses true labels knowingly, as published code does."
        )
    path = _found(text, folder)
    if path.suffix not in (".npz", *PICKLES):
        raise InputError(
            f"unlabeled must be an .npz or {PICKLES[0]} file of pseudo-labeled images, got "
            f"{text!r}. {HOW}"
        )
    if not path.is_file():
        raise DataError(
            f"{path} is missing, from here and in the folder of the data. {HOW} {PUBLISHED_PICKLE} "
            "of Carmon et al. is linked at github.com/yaircarmon/semisup-adv."
        )
    return _from_npz(path, limit) if path.suffix == ".npz" else _from_pickle(path, limit)


def save_pseudo_labels(
    path: Path, images: Tensor, labels: Tensor, provenance: Mapping[str, Any]
) -> None:
    """Write images with their pseudo-labels as an `.npz` file, whole or not at all.

    Args:
        path: Ends in `.npz`.
        images: uint8, shape (n, c, h, w).
        labels: int64, shape (n,).
        provenance: Where the labels come from, as plain JSON values.

    Raises:
        RunError: If the file cannot be written.
    """
    facts = {"format": FORMAT, "version": VERSION, **provenance}
    arrays: dict[str, Any] = {
        IMAGES: images.permute(0, 2, 3, 1).contiguous().numpy(),
        LABELS: labels.numpy(),
        PROVENANCE: np.array(json.dumps(facts)),
    }
    atomic_write(path, lambda stream: np.savez(stream, **arrays))


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Return what one of our files says of its making; None for a file of others.

    Raises:
        DataError: If the file is missing or damaged, or of a later version.
    """
    if PROVENANCE not in array_names(path):
        return None
    try:
        facts = json.loads(read_text(path, PROVENANCE))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: its provenance is no JSON ({error}); make it anew.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DataError(
            f"{path}: its provenance does not say {FORMAT!r}; make the file anew, or leave "
            f"{PROVENANCE!r} out if it is of another origin."
        )
    if facts.get("version") != VERSION:
        raise DataError(
            f"{path}: must be of version {VERSION}, got {facts.get('version')!r}; use the program "
            "that wrote it, or make it anew."
        )
    return facts


def _found(text: str, folder: str | os.PathLike[str] | None) -> Path:
    """Return where a file lies: from here, or else in the folder of the data."""
    path = Path(text).expanduser()
    root = folder or os.environ.get(ENVIRONMENT)
    if path.exists() or path.is_absolute() or root is None:
        return path
    there = Path(root).expanduser() / path
    return there if there.exists() else path


def _from_npz(path: Path, limit: int | None) -> Split:
    names = array_names(path)
    missing = [name for name in (IMAGES, LABELS) if name not in names]
    if missing:
        raise DataError(
            f"{path} must hold the arrays {IMAGES!r} and {LABELS!r}, got "
            f"{', '.join(sorted(names)) or 'none'}. If its labels are true ones, they are not for "
            f"self-training. {HOW}"
        )
    facts, shapes = read_provenance(path), [array_shape(path, name) for name in (IMAGES, LABELS)]
    counts: list[Any] = [shape[0] if shape else 0 for shape in shapes]
    if facts is not None:
        counts.append(facts.get("count"))
    if len(set(counts)) > 1:
        told = "" if facts is None else f", and its provenance counts {counts[2]!r}"
        raise DataError(
            f"{path} must hold one label for each image, got {counts[0]} images and {counts[1]} "
            f"labels{told}; it is truncated, or put together wrongly. Make it anew."
        )
    count = _limited(path, limit, counts[0])
    return _checked(path, *(read_array(path, name, rows=count) for name in (IMAGES, LABELS)))


def _from_pickle(path: Path, limit: int | None) -> Split:
    content = read_arrays_pickle(path)
    if not {"data", "extrapolated_targets"} <= content.keys():
        raise DataError(
            f"{path} must hold `data` and `extrapolated_targets`, as {PUBLISHED_PICKLE} does, got "
            f"{', '.join(sorted(map(repr, content))) or 'nothing'}. {HOW}"
        )
    images, labels = content["data"], content["extrapolated_targets"]
    if isinstance(labels, list):
        labels = _whole_numbers(path, labels)
    for name, value in (("data", images), ("extrapolated_targets", labels)):
        if not isinstance(value, np.ndarray):
            raise DataError(
                f"{path}: {name} must be an array, got {type(value).__name__}; get the file again."
            )
    split = _checked(path, images, labels)
    return split.first(_limited(path, limit, len(split)))


def _whole_numbers(path: Path, values: list[Any]) -> NDArray[np.int64]:
    if not all(type(value) is int and 0 <= value < 2**31 for value in values):
        raise DataError(f"{path}: extrapolated_targets must be class indices; get it again.")
    return np.array(values, np.int64)


def _limited(path: Path, limit: int | None, available: int) -> int:
    if available == 0:
        raise _nothing(path)
    return limited("unlabeled_limit", limit, available)


def _checked(path: Path, images: NDArray[Any], labels: NDArray[Any]) -> Split:
    """Return the arrays as a split, or raise a DataError that says what is wrong with them."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{path}: its images must be uint8 of shape (n, h, w, 1 or 3), got {images.dtype} of "
            f"shape {images.shape}; save the bytes of the images, channels last."
        )
    if len(images) == 0:
        raise _nothing(path)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: must hold one class index for each of its {len(images)} images, got labels "
            f"of {labels.dtype} and shape {labels.shape}; it is truncated, or put together wrongly."
        )
    pixels = torch.from_numpy(np.require(images, requirements="W")).permute(0, 3, 1, 2)
    try:
        return Split(pixels.contiguous(), torch.from_numpy(labels.astype(np.int64)))
    except MultirobustError as error:
        raise DataError(f"{path}: {error}") from None


def _nothing(path: Path) -> DataError:
    return DataError(f"{path} holds no images; get it again, or make it anew. {HOW}")
