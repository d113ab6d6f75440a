"""Labeling images with a trained model, for self-training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from multirobust import training
from multirobust.config import DataConfig
from multirobust.data import DATASETS, Data, Split
from multirobust.data.content import content_digest
from multirobust.data.folders import EXTENSIONS
from multirobust.data.pictures import read_images
from multirobust.data.pseudo_labels import read_provenance, save_pseudo_labels
from multirobust.data.svhn import svhn_extra
from multirobust.data.untrusted import array_names, read_array
from multirobust.errors import DataError, InputError, lookup_error
from multirobust.experiment.building import load_data, load_model, weights_digest
from multirobust.experiment.runs import Run
from multirobust.experiment.unlabeled import rest_of
from multirobust.provenance import provenance

__all__ = ["PseudoLabels", "pseudo_label"]

SVHN_EXTRA = "svhn_extra"
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
    run: Run,
    source: str,
    output: Path,
    *,
    limit: int | None = None,
    confidence: float | None = None,
    data_folder: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> PseudoLabels:
    """Label images with the model of a run, and write both into a file to train on.

    Args:
        run: A run that has been trained.
        source: What to label:

            - the run's own data set, of which it takes the training images that the run was not
              trained on, those beyond `train_limit`;
            - another data set of ours, of which it takes all training images; or "svhn_extra";
            - an `.npz` file with uint8 images, of which labels are not read;
            - a folder of images, at any depth, in the order of their paths.
        output: The `.npz` file; one of ours is replaced, any other left alone.
        limit: Only the first so many images; more than there are means all.
        confidence: Keep only images whose label the model gives at least this probability.
        data_folder: Where the files of a data set of ours lie; None takes the run's.
        report: Receives lines on what happens.

    Raises:
        DataError: If images are missing or damaged.
        InputError: If there are no images to label, or they do not fit the model.
        RunError: If the run has not ended, or the file cannot be written.
    """
    _check(source, output, limit, confidence)
    config = run.recipe.data
    if data_folder is not None:
        config = config.model_copy(update={"folder": data_folder})
    data = load_data(config)
    images, truth = _images(source, config, data, limit)
    shape = tuple(data.train.images.shape[1:])
    if tuple(images.shape[1:]) != shape:
        raise InputError(
            f"DATA: {source} must have images of shape {shape}, as the model of {run.folder} "
            f"takes, got {tuple(images.shape[1:])}; scale or convert them."
        )
    device = training.choose_device(run.recipe.training.device)
    model, size = load_model(run, data).to(device), run.recipe.evaluation.batch_size
    labels, certainty = _predicted(model, images, size, device, report)
    kept = _certain(certainty, confidence)
    facts = _provenance(run, source, images, len(kept), confidence, device)
    save_pseudo_labels(output, images[kept], labels[kept], facts)
    counts = torch.bincount(labels[kept], minlength=data.classes).tolist()
    shares = [count / len(kept) for count in counts]
    return PseudoLabels(
        path=output,
        count=len(kept),
        offered=len(images),
        shares=dict(zip(data.class_names, shares, strict=True)),
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
    source: str, config: DataConfig, data: Data, limit: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return images to label, uint8 (n, c, h, w), and their true labels where they are known."""
    path = Path(source).expanduser()
    if source == SVHN_EXTRA:
        return _of_split(svhn_extra(config.folder, limit), limit, known=config.name == "svhn")
    if source == config.name:
        return _of_split(rest_of(config), limit, known=True)
    if source in DATASETS:
        folder = None if source == "digits" else config.folder
        other = load_data(DataConfig(name=source, folder=folder, test_limit=1))
        return _of_split(other.train, limit, known=other.class_names == data.class_names)
    if path.suffix == ".npz":
        return _from_arrays(path, limit), None
    if path.is_dir():
        return _from_folder(path, limit), None
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
    run: Run,
    source: str,
    images: Tensor,
    count: int,
    confidence: float | None,
    device: torch.device,
) -> dict[str, Any]:
    pixels = content_digest(Split(images, torch.zeros(len(images), dtype=torch.int64)))
    return {
        "model": {"run": run.name, "recipe": run.recipe.name, "weights": weights_digest(run)},
        "data": {"source": source, "images": len(images), "pixels": pixels},
        "count": count,
        "confidence": confidence,
        **provenance(device),
    }
