"""Seeded batches from a split that stays uint8 on the device; any batch can be the first one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import final

import torch
from torch import Tensor

from multirobust.data.augmentation import Augmentation
from multirobust.data.datasets import Split
from multirobust.data.order import Mixture, batches, generator_for, permutation
from multirobust.data.unlabeled import Unlabeled
from multirobust.errors import InputError
from multirobust.ranks import Part
from multirobust.types import Images, Labels

__all__ = ["Batch", "Loader"]


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Images with their labels.

    Args:
        x: Pixels in [0, 1], float32, shape (b, c, h, w).
        y: Class indices, int64, shape (b,).
        index: Position of each image in the split, int64, shape (b,). Unlabeled images are
            numbered on from the labeled ones: len(split) + i is the i-th of them.
        part: Which rows of a batch that is divided among processes or rounds these are; None is a
            whole batch.
    """

    x: Images
    y: Labels
    index: Labels
    part: Part | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def place(self) -> Part:
        """Which rows of the whole batch these are; all of them without a part."""
        count = len(self)
        return self.part or Part(start=0, stop=count, total=count, fellows=count)

    def take(self, part: Part) -> Batch:
        """Return the rows of a part of this whole batch."""
        rows = slice(part.start, part.stop)
        return Batch(self.x[rows], self.y[rows], self.index[rows], part)


@final
@dataclass(frozen=True, eq=False)
class Loader:
    """Batches of a split, the same ones whenever seed, epoch and step are the same.

    The split is moved to the device once and stays there as uint8; a batch is selected, augmented
    and turned to float32 on the device, without waiting for it. The order of an epoch depends on
    (seed, epoch) alone, the augmentation of a batch on (seed, epoch, step) and the kind of device
    alone, so an epoch may start at any step and gives the batches it would have given.

    Every image is seen exactly once an epoch. A last batch of a single image would break batch
    normalization: it is joined to the batch before, which then has batch_size + 1 images.

    With unlabeled images every batch has their share, see `Mixture`; the labels of both kinds are
    in `y`, and augmentation applies to both. They are numbered and stored behind the labeled ones.
    Pooled images are one shuffled set, each seen once an epoch.

    Args:
        split: The images and labels.
        batch_size: Images in a batch; the last batch may have fewer.
        seed: Seed of the order and of the augmentation.
        augmentation: What is done to each batch, or None.
        device: Where the batches are made.
        shuffle: False gives the images in the order of the split, for evaluation.
        unlabeled: Images with pseudo-labels, and how they are mixed in; or None.

    Raises:
        InputError: If batch_size is not a whole number from 1 on, or the share of unlabeled images
            leaves a batch without one kind.
    """

    split: Split
    _: KW_ONLY
    batch_size: int
    seed: int
    augmentation: Augmentation | None = None
    device: torch.device | str = "cpu"
    shuffle: bool = True
    unlabeled: Unlabeled | None = None
    _pool: Split = field(init=False)
    _mixture: Mixture | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(
                f"batch_size must be a whole number of images, 1 or more, got {size!r}."
            )
        count, more = len(self.split), self.unlabeled
        if more is not None and more.share != "pooled":
            kinds = {"labeled": count, "unlabeled": len(more), "batch_size": size}
            mixture = Mixture(**kinds, share=more.share, epoch=more.epoch)
            object.__setattr__(self, "_mixture", mixture)
        pool = self.split.to(self.device)
        if more is not None:
            pool = _joined(self.split, more.split, self.device)
        object.__setattr__(self, "_pool", pool)
        object.__setattr__(self, "split", pool.first(count))

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        if self._mixture is not None:
            return len(self._mixture)
        return batches(len(self._pool), self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch from step `start` on.

        Args:
            epoch: Number of the epoch, from 0 on.
            start: First step, in 0..len(self); batches before it are not made.

        Raises:
            InputError: If the epoch is negative or the start is outside the epoch.
        """
        if epoch < 0:
            raise InputError(f"epoch must be 0 or more, got {epoch}.")
        if not 0 <= start <= len(self):
            raise InputError(
                f"start must lie in 0..{len(self)}, the batches of an epoch, got {start}; "
                "was the batch size changed since the checkpoint?"
            )
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self._order(epoch)
        for step in range(start, len(self)):
            end = (step + 1) * self.batch_size if step + 1 < len(self) else len(order)
            yield self._batch(order[step * self.batch_size : end], epoch, step)

    def _order(self, epoch: int) -> Tensor:
        device = self._pool.images.device
        if self._mixture is not None:
            return self._mixture.order(epoch, self.seed, shuffle=self.shuffle).to(device)
        if not self.shuffle:
            return torch.arange(len(self._pool), device=device)
        return permutation(len(self._pool), self.seed, "order", epoch).to(device)

    def _batch(self, index: Tensor, epoch: int, step: int) -> Batch:
        images = self._pool.images.index_select(0, index)
        if self.augmentation is not None:
            generator = generator_for(images.device, self.seed, "augmentation", epoch, step)
            images = self.augmentation(images, generator)
        return Batch(images.float().div_(255), self._pool.labels.index_select(0, index), index)


def _joined(labeled: Split, unlabeled: Split, device: torch.device | str) -> Split:
    """Return both on the device, the labeled images first, without a second copy there."""
    count, total = len(labeled), len(labeled) + len(unlabeled)
    images = torch.empty((total, *labeled.images.shape[1:]), dtype=torch.uint8, device=device)
    labels = torch.empty(total, dtype=torch.int64, device=device)
    for part, rows in ((labeled, slice(0, count)), (unlabeled, slice(count, total))):
        images[rows].copy_(part.images)
        labels[rows].copy_(part.labels)
    return Split(images, labels, labeled.source)
