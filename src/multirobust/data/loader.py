"""Seeded batches from a split that stays uint8 on the device; any batch can be the first one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from torch import Tensor

from multirobust.data.augmentation import Augmentation
from multirobust.data.datasets import Split
from multirobust.errors import InputError
from multirobust.types import Images, Labels

__all__ = ["Batch", "Loader"]


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Images with their labels.

    Args:
        x: Pixels in [0, 1], float32, shape (b, c, h, w).
        y: Class indices, int64, shape (b,).
        index: Position of each image in the split, int64, shape (b,).
    """

    x: Images
    y: Labels
    index: Labels

    def __len__(self) -> int:
        return len(self.y)


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

    Args:
        split: The images and labels.
        batch_size: Images in a batch; the last batch may have fewer.
        seed: Seed of the order and of the augmentation.
        augmentation: What is done to each batch, or None.
        device: Where the batches are made.
        shuffle: False gives the images in the order of the split, for evaluation.

    Raises:
        InputError: If batch_size is not a whole number from 1 on.
    """

    split: Split
    _: KW_ONLY
    batch_size: int
    seed: int
    augmentation: Augmentation | None = None
    device: torch.device | str = "cpu"
    shuffle: bool = True

    def __post_init__(self) -> None:
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(
                f"batch_size must be a whole number of images, 1 or more, got {size!r}."
            )
        object.__setattr__(self, "split", self.split.to(self.device))

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        joined = rest == 0 or (rest == 1 and full > 0)
        return full if joined else full + 1

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
        count, device = len(self.split), self.split.images.device
        if not self.shuffle:
            return torch.arange(count, device=device)
        # Drawn on the CPU, so that every device trains on the same batches.
        generator = _generator("cpu", self.seed, "order", epoch)
        return torch.randperm(count, generator=generator).to(device)

    def _batch(self, index: Tensor, epoch: int, step: int) -> Batch:
        images = self.split.images.index_select(0, index)
        if self.augmentation is not None:
            generator = _generator(images.device, self.seed, "augmentation", epoch, step)
            images = self.augmentation(images, generator)
        return Batch(images.float().div_(255), self.split.labels.index_select(0, index), index)


def _generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a generator whose numbers are those of the key: independent for different keys."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))
