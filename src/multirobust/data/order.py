"""Which images stand in which batch: a function of the seed, the epoch and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from multirobust.errors import InputError

__all__ = ["Mixture", "Passes", "batches", "generator_for", "permutation"]


def generator_for(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a generator whose numbers are those of the key: independent for different keys."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))


def permutation(count: int, *key: int | str) -> Tensor:
    """Return the permutation of 0..count - 1 that belongs to a key.

    It is drawn on the CPU, so that every device trains on the same batches.
    """
    return torch.randperm(count, generator=generator_for("cpu", *key))


def batches(images: int, batch_size: int) -> int:
    """Return how many batches so many images make; a single last image is joined to the others."""
    full, rest = divmod(images, batch_size)
    joined = rest == 0 or (rest == 1 and full > 0)
    return full if joined else full + 1


@final
class Passes:
    """One pass over the images after the other, each in an order of its own, without an end.

    Args:
        count: Number of images.
        key: Seed and name of the orders; None takes the images as they are stored every time.
    """

    def __init__(self, count: int, *key: int | str):
        self.count = count
        self.key = key
        self._last: tuple[int, Tensor] | None = None

    def slice(self, start: int, stop: int) -> Tensor:
        """Return the images at the places start..stop - 1 of the endless row."""
        parts = []
        while start < stop:
            number, offset = divmod(start, self.count)
            end = min(self.count, offset + stop - start)
            parts.append(self._order(number)[offset:end])
            start += end - offset
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def _order(self, number: int) -> Tensor:
        if self._last is None or self._last[0] != number:
            order = (
                permutation(self.count, *self.key, number) if self.key else torch.arange(self.count)
            )
            self._last = number, order
        return self._last[1]


@final
@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Batches with a fixed share of unlabeled images.

    Every batch but the last has `batch_size` images, of which `unlabeled_each` are unlabeled: the
    share of the batch size, rounded, a half upwards. The last batch keeps that proportion as nearly
    as whole images can. An epoch ends with the last labeled image ("labeled"), or after as many
    images as there are of both ("all").

    Labeled and unlabeled images each come in successive passes through fresh permutations that
    run on across the epochs: every image is used before any is used again.

    Args:
        labeled: Number of labeled images.
        unlabeled: Number of unlabeled images.
        batch_size: Images in a batch.
        share: Of unlabeled images in a batch, above 0 and below 1.
        epoch: What an epoch is.

    Raises:
        InputError: If the share leaves a batch without labeled or without unlabeled images.
    """

    labeled: int
    unlabeled: int
    batch_size: int
    share: float
    epoch: Literal["labeled", "all"] = "labeled"

    def __post_init__(self) -> None:
        if not 0 < self.unlabeled_each < self.batch_size:
            raise InputError(
                f"unlabeled_share must leave each batch of {self.batch_size} an image of either "
                f"kind, got {self.share}, which makes {self.unlabeled_each} unlabeled; choose a "
                "share nearer to 0.5, or a larger batch_size."
            )

    @property
    def unlabeled_each(self) -> int:
        """Unlabeled images of every batch but the last."""
        return int(self.batch_size * self.share + 0.5)

    @property
    def labeled_each(self) -> int:
        """Labeled images of every batch but the last."""
        return self.batch_size - self.unlabeled_each

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        if self.epoch == "all":
            return batches(self.labeled + self.unlabeled, self.batch_size)
        full, rest = divmod(self.labeled, self.labeled_each)
        alone = rest == 1 and self._beside(1) == 0 and full > 0
        return full if rest == 0 or alone else full + 1

    def last(self) -> tuple[int, int]:
        """Return the labeled and the unlabeled images of the last batch of an epoch."""
        before = len(self) - 1
        if self.epoch == "labeled":
            labeled = self.labeled - before * self.labeled_each
            return labeled, self._beside(labeled)
        images = self.labeled + self.unlabeled - before * self.batch_size
        unlabeled = _rounded(images * self.unlabeled_each, self.batch_size)
        return images - unlabeled, unlabeled

    def order(self, epoch: int, seed: int, *, shuffle: bool = True) -> Tensor:
        """Return the images of an epoch, batch after batch.

        Args:
            epoch: Its number, from 0 on.
            seed: Of the permutations.
            shuffle: False takes the images as they are stored, the labeled ones of a batch first.

        Returns:
            Positions, int64, on the CPU: below `labeled` a labeled image, from there on an
            unlabeled one.
        """
        kinds = (
            (Passes(self.labeled, seed, "order"), Passes(self.unlabeled, seed, "unlabeled order"))
            if shuffle
            else (Passes(self.labeled), Passes(self.unlabeled))
        )
        each, last, steps = (self.labeled_each, self.unlabeled_each), self.last(), len(self)
        begun = [epoch * ((steps - 1) * full + rest) for full, rest in zip(each, last, strict=True)]
        generator = generator_for("cpu", seed, "places in the batch", epoch)
        parts = []
        for step in range(steps):
            starts = [begun[kind] + step * each[kind] for kind in (0, 1)]
            counts = each if step + 1 < steps else last
            labeled, unlabeled = (
                kinds[kind].slice(starts[kind], starts[kind] + counts[kind]) for kind in (0, 1)
            )
            index = torch.cat([labeled, unlabeled + self.labeled])
            places = torch.randperm(len(index), generator=generator) if shuffle else slice(None)
            parts.append(index[places])
        return torch.cat(parts)

    def _beside(self, labeled: int) -> int:
        """Return how many unlabeled images stand beside so many labeled ones."""
        return _rounded(labeled * self.unlabeled_each, self.labeled_each)


def _rounded(numerator: int, denominator: int) -> int:
    """Return the quotient rounded, a half upwards, without leaving the whole numbers."""
    return (2 * numerator + denominator) // (2 * denominator)
