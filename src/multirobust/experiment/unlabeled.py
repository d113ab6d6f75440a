"""Self-training: which images a run has without labels, and which of its data set it never saw."""

from __future__ import annotations

from dataclasses import replace

from multirobust.config import DataConfig
from multirobust.data import Data, Split, Unlabeled
from multirobust.data.pseudo_labels import pseudo_labeled
from multirobust.defenses.table import NEEDS_UNLABELED
from multirobust.errors import DataError, InputError
from multirobust.experiment.building import load_data

__all__ = ["check_unlabeled", "rest_of", "with_unlabeled"]


def with_unlabeled(data: Data, config: DataConfig) -> Data:
    """Return the data with the unlabeled images that a recipe names, to be trained on.

    Only training needs them: they are not part of what `load_data` loads. Mean and standard
    deviation stay those of the labeled images.

    Raises:
        DataError: If the file is missing, damaged, or of other images or classes than the data.
        InputError: If it is no file of pseudo-labeled images.
    """
    if config.unlabeled is None or data.unlabeled is not None:
        return data
    split = pseudo_labeled(config.unlabeled, folder=config.folder, limit=config.unlabeled_limit)
    ours, theirs = tuple(data.train.images.shape[1:]), tuple(split.images.shape[1:])
    if theirs != ours:
        raise DataError(
            f"data.unlabeled: {config.unlabeled} must have images of shape {ours}, as "
            f"{data.name!r} has, got {theirs}; scale them, or use those of the same data set."
        )
    highest = int(split.labels.max())
    if highest >= data.classes:
        raise DataError(
            f"data.unlabeled: {config.unlabeled} must have labels in 0..{data.classes - 1}, the "
            f"classes of {data.name!r}, got {highest}; its labels are of another data set."
        )
    unlabeled = Unlabeled(split, share=config.unlabeled_share, epoch=config.epoch)
    if config.unlabeled_digest not in (None, unlabeled.digest):
        raise DataError(
            f"data.unlabeled: {config.unlabeled} must hold the images and pseudo-labels that the "
            f"recipe notes (digest {config.unlabeled_digest[:12]}), got others "
            f"({unlabeled.digest[:12]}). Restore them, or drop data.unlabeled_digest and train "
            "into another --output."
        )
    return replace(data, unlabeled=unlabeled)


def check_unlabeled(defense: str, data: Data) -> None:
    """Raise an InputError if a defense needs unlabeled images that the data do not have."""
    if defense in NEEDS_UNLABELED and data.unlabeled is None:
        raise InputError(
            f"{defense} trains on pseudo-labeled images too, got none; set data.unlabeled to a "
            "file of them. `multirobust pseudo-label RUN DATA --output FILE.npz` makes one with a "
            "trained model, such as one of the defense 'standard'."
        )


def rest_of(config: DataConfig) -> Split:
    """Return the training images of a data set that a run was not trained on, with true labels.

    They are those beyond `train_limit`. What was held out for validation is not among them.

    Raises:
        InputError: If there are none.
    """
    if config.train_limit is None:
        raise InputError(
            f"the run was trained with the labels of all images of {config.name!r}, so none are "
            "left to label; train one with data.train_limit, or give other images."
        )
    whole = {"train_limit": None, "validation": 0, "test_limit": 1, "digest": None}
    train = load_data(config.model_copy(update=whole)).train
    if len(train) <= config.train_limit:
        raise InputError(
            f"the run was trained with the labels of all {len(train)} images of {config.name!r} "
            "that are there, so none are left to label; lower data.train_limit, or give other "
            "images."
        )
    return train.subset(range(config.train_limit, len(train)))
