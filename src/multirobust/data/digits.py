"""The embedded data set: scikit-learn's 1,797 scans of handwritten digits, with no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multirobust.data.datasets import Data, Split
from multirobust.data.holdout import hold_out, limit, stratified_order

__all__ = ["digits", "digits_indices"]

TEST_IMAGES = 500
TRAIN_IMAGES = 1297
SPLIT_SEED = 0
MEAN = (0.3059,)
STD = (0.3760,)


def digits(
    *, validation: int = 0, train_limit: int | None = None, test_limit: int | None = None
) -> Data:
    """Load the digits: 8 x 8 gray scans of ten classes, 1,297 to train on and 500 to test on.

    The scans come with scikit-learn, with pixels 0..16, which become round(255 v / 16). They are
    stored there by writer, so the split is a fixed permutation: stratified by class and ordered by
    SHA-256, hence the same with every version of scikit-learn, NumPy and PyTorch. Writers occur in
    both splits. Mean and std are those of all 1,297 training images. There is no augmentation, as a
    mirrored digit is no digit.

    Args:
        validation: Size of the validation split, taken from the (limited) training images.
        train_limit: Use only the first so many training images; they are stratified too.
        test_limit: Use only the first so many test images; they are stratified too.

    Raises:
        InputError: If a size is larger than what there is.

    References:
        Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI repository, 1998.
    """
    values, labels = _scans()
    everything = Split(((values * 255 + 8) // 16).to(torch.uint8), labels)
    train_indices, test_indices = digits_indices(labels)
    train = everything.subset(train_indices[: limit("train_limit", train_limit, TRAIN_IMAGES)])
    test = everything.subset(test_indices[: limit("test_limit", test_limit, TEST_IMAGES)])
    train, held_out = hold_out(train, validation)
    return Data(
        "digits",
        train,
        test,
        validation=held_out,
        class_names=tuple(str(digit) for digit in range(10)),
        mean=MEAN,
        std=STD,
    )


def _scans() -> tuple[Tensor, Tensor]:
    """Return pixels 0..16, int64, shape (n, 1, 8, 8), and labels, in scikit-learn's order.

    Its file is read as it lies there: to import scikit-learn takes longer than all else that a
    training does before its first step, but for importing PyTorch.
    """
    package = find_spec("sklearn")
    folders = package.submodule_search_locations if package is not None else None
    file = Path(folders[0], "datasets", "data", "digits.csv.gz") if folders else None
    if file is not None and file.is_file():
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.int64))
        return table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].clone()
    from sklearn.datasets import load_digits

    scans, targets = load_digits(return_X_y=True)
    labels = torch.tensor(targets, dtype=torch.int64)
    return torch.tensor(scans, dtype=torch.int64).view(-1, 1, 8, 8), labels


def digits_indices(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions, in scikit-learn's order, of the training and of the test images."""
    order = stratified_order(labels, seed=SPLIT_SEED)
    return order[TEST_IMAGES:], order[:TEST_IMAGES]
