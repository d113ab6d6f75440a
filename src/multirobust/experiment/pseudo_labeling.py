"""Labeling images with a trained model, for self-training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from multirobust.config import DataConfig
from multirobust.data import DATASETS, Split
from multirobust.data.content import content_digest
from multirobust.data.folders import EXTENSIONS
from multirobust.data.pictures import read_images
from multirobust.data.pseudo_labels import read_provenance, save_pseudo_labels
from multirobust.data.svhn import svhn_extra
from multirobust.data.untrusted import array_names, read_array
from multirobust.errors import DataError, InputError, lookup_error
from multirobust.experiment.building import load_data
from multirobust.experiment.labelers import ExternalModel, Labeler, labeler
from multirobust.experiment.runs import Run
from multirobust.experiment.unlabeled import rest_of
from multirobust.provenance import provenance

__all__ = ["PseudoLabels", "pseudo_label"]

SVHN_EXTRA = "svhn_extra"
SVHN_CLASSES = tuple("0123456789")
IMAGES = ("image", "images", "x", "x_train", "train_images", "data")
"""Names of images in an `.npz` file whose labels, if it has any, are not read."""


@final
@dataclass(frozen=True)
class PseudoLabels:
    """What was labeled.

    Args:
        path: The file.
        count: Images in it.
        offered: Images that there were to label.
        shares: Of each class among the pseudo-labels, by its name.
        accuracy: Share of the pseudo-labels that are the true labels, in [0, 1]; None where true
            labels are not at hand. They are compared, never used and never written.
    """

    path: Path
    count: int
    offered: int
    shares: dict[str, float]
    accuracy: float | None


def pseudo_label(
    model: Run | ExternalModel,
    source: str,
    output: Path,
    *,
    limit: int | None = None,
    confidence: float | None = None,
    data_folder: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> PseudoLabels:
    """Label images with a trained model, and write both into a file to train on.

    Args:
        model: A run that has been trained, or any other classifier.
        source: What to label:

            - the run's own data set, of which it takes the training images that the run was not
              trained on, those beyond `train_limit`;
            - another data set of ours, of which it takes all training images; or "svhn_extra". A
              model that is no run must have one logit for each of its classes, in their order;
            - an `.npz` file with uint8 images, of which labels are not read;
            - a folder of images, at any depth, in the order of their paths.
        output: The `.npz` file; one of ours is replaced, any other left alone.
        limit: Only the first so many images; more than there are means all.
        confidence: Keep only images whose label the model gives at least this probability.
        data_folder: Where the files of a data set of ours lie; None takes the run's.
        report: Receives lines on what happens.

    Raises:
        DataError: If images are missing or damaged.
        InputError: If there are no images to label, they do not fit the model, or it cannot be
            loaded.
        RunError: If the run has not ended, or the file cannot be written.
    """
    _check(source, output, limit, confidence)
    by = labeler(model, data_folder)
    images, truth, names = _images(source, by, data_folder, limit)
    zeros = torch.zeros(len(images), dtype=torch.int64)
    names = by.names(Split(images, zeros if truth is None else truth), names, source)
    labels, certainty = _predicted(by.classifier, images, by.batch_size, by.device, report)
    kept = _certain(certainty, confidence)
    facts = _provenance(by, source, images, len(kept), confidence)
    save_pseudo_labels(output, images[kept], labels[kept], facts)
    counts = torch.bincount(labels[kept], minlength=len(names)).tolist()
    shares = [count / len(kept) for count in counts]
    return PseudoLabels(
        path=output,
        count=len(kept),
        offered=len(images),
        shares=dict(zip(names, shares, strict=True)),
        accuracy=None if truth is None else float((truth == labels)[kept].double().mean()),
    )


def _certain(certainty: Tensor, confidence: float | None) -> Tensor:
    """Return the places of the images that are certain enough, in their order."""
    kept = (certainty >= (confidence or 0)).nonzero().flatten()
    if len(kept) == 0:
        raise InputError(
            f"confidence: none of the {len(certainty)} images is labeled with probability "
            f"{confidence} or more, the highest is {float(certainty.max()):.3f}; choose a lower "
            "one."
        )
    return kept


def _check(source: str, output: Path, limit: int | None, confidence: float | None) -> None:
    if output.suffix != ".npz":
        raise InputError(f"output: must end in .npz, got {str(output)!r}; write {output}.npz.")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more, got {limit!r}; leave it out to label all.")
    if confidence is not None and not 0 < confidence <= 1:
        raise InputError(f"confidence must be above 0 and at most 1, got {confidence!r}.")
    if not output.exists():
        return
    same = Path(source).exists() and output.samefile(source)
    try:
        ours = not same and read_provenance(output) is not None
    except DataError:
        ours = False
    if not ours:
        raise InputError(
            f"output: {output} is there and not a file of pseudo-labels of ours, so it is not "
            "replaced; choose another --output."
        )


def _images(
    source: str, by: Labeler, data_folder: str | None, limit: int | None
) -> tuple[Tensor, Tensor | None, tuple[str, ...] | None]:
    """Return images to label, uint8 (n, c, h, w), and what is known of them.

    That is their true labels, and the names of their classes.
    """
    path, config = Path(source).expanduser(), by.config
    folder = data_folder if config is None else config.folder
    if source == SVHN_EXTRA:
        known = config is None or config.name == "svhn"
        return *_of_split(svhn_extra(folder, limit), limit, known=known), SVHN_CLASSES
    if config is not None and source == config.name:
        return *_of_split(rest_of(config), limit, known=True), None
    if source in DATASETS:
        folder = None if source == "digits" else folder
        other = load_data(DataConfig(name=source, folder=folder, test_limit=1))
        known = by.data is None or other.class_names == by.data.class_names
        return *_of_split(other.train, limit, known=known), other.class_names
    if path.suffix == ".npz":
        return _from_arrays(path, limit), None, None
    if path.is_dir():
        return _from_folder(path, limit), None, None
    known = lookup_error("data set", source, [*DATASETS, SVHN_EXTRA])
    raise InputError(f"{known} Or give the path of a folder of images, or of an .npz file.")


def _of_split(split: Split, limit: int | None, *, known: bool) -> tuple[Tensor, Tensor | None]:
    return split.images[:limit], split.labels[:limit] if known else None


def _from_arrays(path: Path, limit: int | None) -> Tensor:
    names = [name for name in array_names(path) if name in IMAGES]
    if len(names) != 1:
        raise DataError(
            f"{path} must hold one array of images, called {', '.join(IMAGES)}, got "
            f"{', '.join(names) or 'none'}; save it with one."
        )
    pixels = read_array(path, names[0], rows=limit)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    try:
        return Split.from_arrays(pixels, np.zeros(len(pixels), np.int64)).images
    except InputError as error:
        raise DataError(f"{path}: {error}") from None


def _from_folder(path: Path, limit: int | None) -> Tensor:
    paths = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
    ]
    if not paths:
        raise DataError(f"{path} holds no images; they end in {', '.join(EXTENSIONS)}.")
    return read_images(paths[:limit], path, size=None)


@torch.inference_mode()
def _predicted(
    model: nn.Module,
    images: Tensor,
    batch_size: int,
    device: torch.device,
    report: Callable[[str], None],
) -> tuple[Tensor, Tensor]:
    """Return for each image the class of the highest logit, and its probability."""
    labels, certainty, tenth = [], [], -1
    for start in range(0, len(images), batch_size):
        x = images[start : start + batch_size].to(device).float().div_(255)
        highest, label = model(x).float().softmax(dim=1).max(dim=1)
        labels.append(label.cpu())
        certainty.append(highest.cpu())
        done = min(start + batch_size, len(images))
        if 10 * done // len(images) > tenth:
            tenth = 10 * done // len(images)
            report(f"labeled {done:,} of {len(images):,} images")
    return torch.cat(labels), torch.cat(certainty)


def _provenance(
    by: Labeler, source: str, images: Tensor, count: int, confidence: float | None
) -> dict[str, Any]:
    pixels = content_digest(Split(images, torch.zeros(len(images), dtype=torch.int64)))
    return {
        "model": dict(by.facts),
        "data": {"source": source, "images": len(images), "pixels": pixels},
        "count": count,
        "confidence": confidence,
        **provenance(by.device),
    }
