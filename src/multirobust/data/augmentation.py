"""Random changes of training images that keep their label, applied to a whole batch at once."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from multirobust.errors import InputError

__all__ = ["Augmentation", "CropFlip", "crop_flip"]


@dataclass(frozen=True)
class Augmentation(abc.ABC):
    """A frozen value that maps a batch of images to a batch of the same shape and dtype."""

    @abc.abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the changed batch, on the device of the images and without waiting for it.

        Args:
            images: Shape (b, c, h, w), as a rule uint8.
            generator: Where the random numbers come from, on the device of the images; None is a
                fresh one with seed 0.
        """


@final
@dataclass(frozen=True)
class CropFlip(Augmentation):
    """Zero-pad, crop back to size at a uniform offset, and mirror one image in two.

    The usual augmentation of CIFAR-10. All offsets of a batch are drawn first (rows, then columns),
    then its flips.

    Args:
        padding: Pixels of black border on each side; 0 only flips.

    Raises:
        InputError: If the padding is not a whole number from 0 on.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.padding, bool) or not isinstance(self.padding, int) or self.padding < 0:
            raise InputError(
                f"CropFlip: padding must be a whole number of pixels, 0 or more, "
                f"got {self.padding!r}; 4 is usual for 32 x 32 images."
            )

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the batch cropped and mirrored; see the class."""
        device = images.device
        if generator is None:
            generator = torch.Generator(device).manual_seed(0)
        offsets = torch.randint(
            2 * self.padding + 1, (2, len(images)), generator=generator, device=device
        )
        flips = torch.randint(2, (len(images),), generator=generator, device=device).bool()
        return crop_flip(images, offsets[0], offsets[1], flips, padding=self.padding)


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, *, padding: int) -> Tensor:
    """Crop each zero-padded image at its own offset, then mirror those marked.

    One gather for the whole batch; nothing is looped over or sent to the host.

    Args:
        images: Shape (b, c, h, w).
        top: First row of each crop in the padded image, int64 in 0..2 * padding, shape (b,).
        left: First column, likewise.
        flip: Whether to mirror left and right, bool, shape (b,).
        padding: Pixels of zeros on each side.

    Returns:
        Shape (b, c, h, w), the dtype of the images.
    """
    count, channels, height, width = images.shape
    padded = pad(images, (padding, padding, padding, padding))
    column = torch.arange(width, device=images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - column, column)
    pixels = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
    source = pixels.view(count, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, source).view_as(images)
