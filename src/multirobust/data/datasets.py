"""A data set in memory: its splits, its classes, and what a model needs to know of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multirobust.checks import check_images, check_labels
from multirobust.data.augmentation import Augmentation
from multirobust.data.host_images import Placement
from multirobust.errors import InputError
from multirobust.types import Images

if TYPE_CHECKING:
    from multirobust.data.unlabeled import Unlabeled

__all__ = ["Data", "Layout", "Split"]

Layout: TypeAlias = Literal["nchw", "nhwc"]
CHANNELS = (1, 3)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images with their labels, as stored: uint8, all in memory, on one device.

    Args:
        images: Pixels in 0..255, uint8, shape (n, c, h, w).
        labels: Class indices, int64, shape (n,), on the same device.
        source: Name of the data set it belongs to, by which evaluation finds its radii.

    Raises:
        InputError: If the split is empty, a dtype or a shape is another, a label is negative or
            one-hot, or the lengths or devices differ.
    """

    images: Tensor
    labels: Tensor
    source: str = ""

    def __post_init__(self) -> None:
        _check_stored(self.images)
        check_labels(self.labels, None, name="labels", images=len(self.images))
        if self.images.device != self.labels.device:
            raise InputError(
                f"images and labels must be on one device, got {self.images.device} and "
                f"{self.labels.device}; move one with .to(device)."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = tuple(self.images.shape[1:])
        return f"Split({len(self)} images of shape {shape} on {self.images.device})"

    @classmethod
    def from_arrays(
        cls,
        images: NDArray[np.generic] | Tensor,
        labels: NDArray[np.generic] | Tensor | Sequence[int],
        *,
        layout: Layout | None = None,
        quantize: bool = False,
    ) -> Split:
        """Make a split from NumPy arrays or tensors.

        Args:
            images: Four dimensions, uint8 in 0..255, or floats in [0, 1] with quantize=True.
            labels: Class indices of any integer type, shape (n,).
            layout: "nchw" or "nhwc". None infers it, channels being the axis of length 1 or 3.
            quantize: Round float images to the nearest of the 256 stored values. The split then
                holds other images than it was given, by up to 1/510 a pixel.

        Raises:
            InputError: If the layout is ambiguous, floats are given without quantize=True, or the
                result is not a valid split.
        """
        pixels = _tensor(images, "images")
        if pixels.is_floating_point():
            if not quantize:
                raise InputError(
                    f"images must be uint8 in 0..255, got {pixels.dtype}: a split stores 8-bit "
                    "pixels, so floats would be rounded; pass the original uint8 images, or "
                    "quantize=True to round floats in [0, 1]."
                )
            check_images(pixels, name="images")
            pixels = pixels.mul(255).round().to(torch.uint8)
        _check_stored(pixels, shape="(n, c, h, w) or (n, h, w, c)")
        if (layout or _infer_layout(tuple(pixels.shape))) == "nhwc":
            pixels = pixels.permute(0, 3, 1, 2)
        indices = _tensor(labels, "labels")
        whole = (
            not (indices.is_floating_point() or indices.is_complex())
            and indices.dtype != torch.bool
        )
        return cls(pixels.contiguous(), indices.long() if whole else indices)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on a device; the same object if it is there."""
        images = self.images.to(device)
        if images is self.images:
            return self
        return replace(self, images=images, labels=self.labels.to(device))

    def first(self, count: int) -> Split:
        """Return the first images, sharing memory.

        Raises:
            InputError: If count is not in 1..len(self).
        """
        if not 1 <= count <= len(self):
            raise InputError(
                f"count must lie in 1..{len(self)}, the images there are, got {count}."
            )
        if count == len(self):
            return self
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def subset(self, indices: Tensor | Sequence[int]) -> Split:
        """Return a copy of the images at these positions, in this order.

        Raises:
            InputError: If there are none, or one is not in 0..len(self) - 1.
        """
        index = torch.as_tensor(indices, device=self.images.device)
        check_labels(index, len(self), name="indices")
        return replace(self, images=self.images[index], labels=self.labels[index])

    def floats(self, index: slice | int | Tensor | None = None) -> Images:
        """Return pixels in [0, 1] as float32, shape (b, c, h, w).

        Args:
            index: Which images: a slice, one position (a batch of one), a tensor of positions, or
                None for all.
        """
        if index is None:
            index = slice(None)
        stored = self.images[index]
        return (stored[None] if isinstance(index, int) else stored).float().div_(255)


@final
@dataclass(frozen=True, eq=False)
class Data:
    """A data set ready for training.

    Args:
        name: Its name, as in the table of data sets.
        train: Training images.
        test: Test images.
        validation: Images held out of training, or None.
        class_names: A name for each class, in the order of the labels.
        mean: Mean of the training pixels of each channel, in [0, 1]; models normalize with it.
        std: Their standard deviation, on the same scale.
        augmentation: What to do to training batches, or None.
        unlabeled: Pseudo-labeled images to train on too, or None; mean and std are not theirs.
        digest: SHA-256 of what the training images were made of, before any were held out; None
            where the name and published checksums say it.
        placement: Where a training keeps the images, see `Loader`; it changes no result.

    Raises:
        InputError: If there are fewer than two classes, labels without a class, training images of
            a single class, images of different shapes, or not one mean and std for each channel.
    """

    name: str
    train: Split
    test: Split
    _: KW_ONLY
    validation: Split | None = None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | None = None
    unlabeled: Unlabeled | None = None
    digest: str | None = None
    placement: Placement = "auto"

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InputError(
                f"{self.name}: class_names must name two classes or more, got "
                f"{self.class_names!r}; with one class there is nothing to tell apart."
            )
        splits = {"train": self.train, "test": self.test, "validation": self.validation}
        for part, split in splits.items():
            if split is not None:
                self._check_split(part, split)
                object.__setattr__(split, "source", self.name)
        if self.unlabeled is not None:
            self._check_split("unlabeled", self.unlabeled.split)
        if bool((self.train.labels == self.train.labels[0]).all()):
            raise InputError(
                f"{self.name}: train must hold images of two classes or more, all "
                f"{len(self.train)} are of class {int(self.train.labels[0])}; use more images."
            )
        for field, values in (("mean", self.mean), ("std", self.std)):
            low_ok = all(0 <= v <= 1 for v in values) and (field == "mean" or all(values))
            if len(values) != self.channels or not low_ok:
                rule = "in [0, 1]" if field == "mean" else "above 0 and at most 1"
                raise InputError(
                    f"{self.name}: {field} must be one number {rule} for each of the "
                    f"{self.channels} channels, got {values!r}; divide by 255 if it is in 0..255."
                )

    def _check_split(self, part: str, split: Split) -> None:
        shape, other = tuple(self.train.images.shape[1:]), tuple(split.images.shape[1:])
        if other != shape:
            raise InputError(
                f"{self.name}: all images must have the shape of the training images, {shape}, "
                f"got {other} in {part}; resize them."
            )
        check_labels(split.labels, self.classes, name=f"{self.name}: {part}.labels")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.train.images.shape[2:]
        return height, width


def _tensor(values: object, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    # A copy of an array: the split owns its memory, and a read-only array makes torch warn.
    array = np.array(values)
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError:
        raise InputError(
            f"{name} must be numbers of a kind that torch has, got {array.dtype}; convert them."
        ) from None


def _check_stored(images: object, *, shape: str = "(n, c, h, w)") -> None:
    rule = f"images must be a uint8 tensor of shape {shape}"
    if not isinstance(images, Tensor):
        raise InputError(f"{rule}, got {type(images).__name__}; use Split.from_arrays for arrays.")
    if images.dtype != torch.uint8:
        raise InputError(f"{rule}, got {images.dtype}; Split.from_arrays converts what it can.")
    if images.dim() != 4:
        way = "add the channel axis with images[:, None]" if images.dim() == 3 else "reshape them"
        raise InputError(f"{rule}, got shape {tuple(images.shape)}; {way}.")
    if images.numel() == 0:
        raise InputError(f"{rule} and hold at least one, got shape {tuple(images.shape)}.")


def _infer_layout(shape: tuple[int, ...]) -> Layout:
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        problem = "both could be" if first else "neither is"
        raise InputError(
            f"layout must be given for images of shape {shape}: channels are the axis of length 1 "
            f'or 3, and of axes 1 and 3 {problem}; pass layout="nchw" or layout="nhwc".'
        )
    return "nchw" if first else "nhwc"
