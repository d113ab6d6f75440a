"""Seeded batches from a split that stays uint8, on the device or on the host.

Any batch can be the first one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import KW_ONLY, dataclass, field
from typing import final

import torch
from torch import Tensor

from multirobust.data.augmentation import Augmentation
from multirobust.data.datasets import Split
from multirobust.data.host_images import HostImages, Placement, chosen_placement
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
    and turned to float32 on the device, without waiting for it. What does not fit there stays on
    the host, where a thread selects the batches ahead. The order of an epoch depends on
    (seed, epoch) alone, the augmentation of a batch on (seed, epoch, step) and the kind of device
    alone, so an epoch may start at any step and gives the batches it would have given. Where the
    images are kept changes no bit.

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
        placement: Where the images are kept: on the "device", in the memory of the "host", or
            "auto", see `chosen_placement`.

    Raises:
        InputError: If batch_size is not a whole number from 1 on, the share of unlabeled images
            leaves a batch without one kind, or the placement is unknown.
    """

    split: Split
    _: KW_ONLY
    batch_size: int
    seed: int
    augmentation: Augmentation | None = None
    device: torch.device | str = "cpu"
    shuffle: bool = True
    unlabeled: Unlabeled | None = None
    placement: Placement = "auto"
    _labels: Tensor = field(init=False)
    _images: Tensor | HostImages = field(init=False)
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
        device, kept = torch.device(self.device), [self.split, *([more.split] if more else [])]
        stored = [part.images for part in kept]
        on_host = chosen_placement(self.placement, device, stored) == "host"
        images = HostImages(*stored) if on_host else _joined(stored, device)
        labels = _joined([part.labels for part in kept], device)
        object.__setattr__(self, "_labels", labels)
        object.__setattr__(self, "_images", images)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        if self._mixture is not None:
            return len(self._mixture)
        return batches(len(self._labels), self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
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

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        order = self._order(epoch)
        index = order.to(self._labels.device)
        ends = [(step + 1) * self.batch_size for step in range(len(self) - 1)] + [len(order)]
        places = [slice(i * self.batch_size, ends[i]) for i in range(start, len(self))]
        with contextlib.closing(self._stored(order, index, places)) as stored:
            for step, images in enumerate(stored, start):
                yield self._batch(images, index[places[step - start]], epoch, step)

    def _order(self, epoch: int) -> Tensor:
        if self._mixture is not None:
            return self._mixture.order(epoch, self.seed, shuffle=self.shuffle)
        if not self.shuffle:
            return torch.arange(len(self._labels))
        return permutation(len(self._labels), self.seed, "order", epoch)

    def _stored(
        self, order: Tensor, index: Tensor, places: list[slice]
    ) -> Generator[Tensor, None, None]:
        """Return the stored pixels of each batch, on the device; the index is the order there."""
        if isinstance(self._images, HostImages):
            rows = [order[place] for place in places]
            yield from self._images.batches(rows, self._labels.device)
        else:
            yield from (self._images.index_select(0, index[place]) for place in places)

    def _batch(self, images: Tensor, index: Tensor, epoch: int, step: int) -> Batch:
        if self.augmentation is not None:
            generator = generator_for(images.device, self.seed, "augmentation", epoch, step)
            images = self.augmentation(images, generator)
        return Batch(images.float().div_(255), self._labels.index_select(0, index), index)


def _joined(parts: list[Tensor], device: torch.device) -> Tensor:
    """Return all on the device, one behind the other, without a second copy there."""
    if len(parts) == 1:
        return parts[0].to(device)
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    whole, start = torch.empty(shape, dtype=parts[0].dtype, device=device), 0
    for part in parts:
        whole[start : start + len(part)].copy_(part)
        start += len(part)
    return whole
