"""A fixed stratified order of labeled images, the same with every version of every library."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from multirobust.data.datasets import Split
from multirobust.data.places import GET_AGAIN
from multirobust.errors import DataError, InputError

__all__ = ["hold_out", "hold_out_rows", "limit", "limit_of_published", "stratified_order"]

HOLD_OUT_SEED = 1


def stratified_order(labels: Tensor, *, seed: int) -> Tensor:
    """Return an order of the images in which every stretch has about the same class shares.

    Images are shuffled by the SHA-256 of "seed index", which no library version can change, and
    then dealt out class by class in proportion: the count of a class among the first n images
    differs from its share of n by less than one.

    Args:
        labels: Class indices, int64, shape (n,).
        seed: Another seed gives another shuffle.

    Returns:
        A permutation of 0..n - 1, int64, shape (n,), on the CPU.
    """
    classes = labels.tolist()
    shuffled = sorted(
        range(len(classes)), key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest()
    )
    totals, seen, place = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0), {}
    for label in classes:
        totals[label] += 1
    for i in shuffled:
        place[i] = (seen[classes[i]] + 0.5) / totals[classes[i]]
        seen[classes[i]] += 1
    return torch.tensor(sorted(shuffled, key=place.__getitem__), dtype=torch.int64)


def hold_out(train: Split, count: int) -> tuple[Split, Split | None]:
    """Take a fixed stratified validation split out of the training images.

    The same images are chosen every time; both parts keep the order of the training split.

    Args:
        train: All images that may be used for training.
        count: Size of the validation split; 0 takes none.

    Returns:
        The remaining training images and the validation images (None if count is 0).

    Raises:
        InputError: If count is not in 0..len(train) - 1.
    """
    kept, held_out = hold_out_rows(train.labels, count)
    return (train.subset(kept), train.subset(held_out)) if count else (train, None)


def hold_out_rows(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the positions of the images that `hold_out` keeps, and of those that it takes.

    Args:
        labels: Of all images that may be used for training, int64, shape (n,).
        count: Size of the validation split.

    Returns:
        Both in ascending order, int64, shapes (n - count,) and (count,).

    Raises:
        InputError: If count is not in 0..n - 1.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < len(labels):
        raise InputError(
            f"validation must be a whole number in 0..{len(labels) - 1}, since it is taken out of "
            f"the {len(labels)} training images, got {count!r}."
        )
    if count == 0:
        return torch.arange(len(labels)), torch.arange(0)
    order = stratified_order(labels, seed=HOLD_OUT_SEED)
    return order[count:].sort().values, order[:count].sort().values


def limit(name: str, value: int | None, available: int) -> int:
    """Return how many images to use: the value, or all that are available if it is None.

    Raises:
        InputError: If the value is not in 1..available.
    """
    if value is None:
        return available
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= available:
        raise InputError(
            f"{name} must be a whole number in 1..{available}, the images there are, got "
            f"{value!r}; leave it out to use them all."
        )
    return value


def limit_of_published(
    name: str, value: int | None, available: int, *, published: int, where: object
) -> int:
    """Return how many images to use of files that may be fewer than those published.

    Args:
        name: Of the limit.
        value: The limit, or None for all that were published.
        available: Images that there are.
        published: Images that there should be.
        where: Names the files in messages.

    Raises:
        DataError: If all are wanted and not as many are there as were published, or there are more.
        InputError: If the value is not in 1..available.
    """
    if available > published or not available or (value is None and available < published):
        some = 0 < available < published
        fewer = f" To use only those, pass {name}={available}." if some else ""
        raise DataError(
            f"{where} must hold the {published:,} published images, got {available:,}: it is not "
            f"whole, or not the published one. Delete it and {GET_AGAIN}{fewer}"
        )
    return limit(name, value, available)
