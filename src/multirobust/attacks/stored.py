"""Ready-made images in place of an attack, such as those of the published CIFAR-10-C files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack, check_batch
from multirobust.errors import InputError
from multirobust.threats import Transformation
from multirobust.types import Images, Labels

__all__ = ["StoredImages"]

_DIGITS = 16


@final
@dataclass(frozen=True)
class StoredImages(Attack):
    """An attack whose answer is stored: one image for every image of a split, in its order.

    Which images of the split a batch holds cannot be told from the batch, so `at` must say it:
    `stored.at(index)(model, x, y)`. Two are equal if their threats and the digests of their images
    are.

    Args:
        threat: What was done to the images, such as `Transformation("fog", 3.0)`.
        images: Pixels in 0..255, uint8, shape (n, c, h, w).
        digest: Of shape and pixels; computed.

    Raises:
        InputError: If images is no uint8 tensor of that shape, or holds none.
    """

    threat: Transformation
    images: Tensor = field(repr=False, compare=False)
    digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        _check_stored(self.images)
        object.__setattr__(self, "digest", _digest(self.images))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def threats(self) -> tuple[Transformation, ...]:
        """Its threat."""
        return (self.threat,)

    def at(self, index: Tensor) -> Attack:
        """Return the attack on the images at these positions of the split.

        Args:
            index: Positions, integers from 0 on, shape (b,), on any device.

        Raises:
            InputError: If a position is not in 0..n - 1 or the index is no vector of integers.
        """
        whole = not (index.is_floating_point() or index.is_complex()) and index.dtype != torch.bool
        if index.dim() != 1 or not whole or not len(index):
            raise InputError(
                "StoredImages.at: index must be a vector of positions, got "
                f"{index.dtype} of shape {tuple(index.shape)}; pass a batch's index."
            )
        low, high = (int(bound) for bound in torch.aminmax(index))
        if low < 0 or high >= len(self):
            raise InputError(
                f"StoredImages.at: index must lie in 0..{len(self) - 1}, the images that are "
                f"stored, got positions from {low} to {high}; store an image for each of the split."
            )
        return _StoredBatch(self.threat, self.images[index.long().to(self.images.device)])

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """Raise: the positions of the images must be known; see `at`.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "StoredImages: which images of the split x holds must be given, got only x; call "
            "stored.at(index)(model, x, y) with their positions."
        )


@final
@dataclass(frozen=True, eq=False)
class _StoredBatch(Attack):
    """The stored images of one batch, uint8 (b, c, h, w)."""

    threat: Transformation
    images: Tensor = field(repr=False)

    @property
    def threats(self) -> tuple[Transformation, ...]:
        """Its threat."""
        return (self.threat,)

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`. Model and generator are not used.

        Raises:
            InputError: If x has another shape than the stored images.
        """
        check_batch(x, y)
        if x.shape != self.images.shape:
            raise InputError(
                f"StoredImages: x must have the shape of the stored images of its positions, "
                f"{tuple(self.images.shape)}, got {tuple(x.shape)}; bind `at` to the index of "
                "this batch, and store images of the size of the split."
            )
        return self.images.to(x.device).to(x.dtype).div_(255)


def _check_stored(images: object) -> None:
    rule = "StoredImages: images must be a uint8 tensor of shape (n, c, h, w) with n >= 1"
    if not isinstance(images, Tensor):
        raise InputError(f"{rule}, got {type(images).__name__}; convert it with torch.as_tensor.")
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.numel():
        raise InputError(
            f"{rule}, got {images.dtype} of shape {tuple(images.shape)}; pass pixels in 0..255."
        )


def _digest(images: Tensor) -> str:
    content = hashlib.sha256(repr(tuple(images.shape)).encode())
    for block in images.split(1024):
        content.update(block.contiguous().cpu().numpy().tobytes())
    return content.hexdigest()[:_DIGITS]
