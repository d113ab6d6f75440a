"""Front-door checks of images and labels from a user: one clear error for each mistake."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from multirobust.errors import InputError

__all__ = ["check_images", "check_labels"]


def check_images(x: object, *, name: str = "x", values: bool = True) -> None:
    """Raise unless x is a batch of float images with pixels in [0, 1].

    Waits for the device once, so it belongs at a front door and not in a loop.

    Args:
        x: Anything; right is a floating-point tensor of shape (b, c, h, w), b >= 1.
        name: What the message calls it.
        values: False checks type, shape and dtype only, and does not wait.

    Raises:
        InputError: If x is no tensor, is empty, has other dimensions or another dtype, holds NaN or
            infinity, or leaves [0, 1].
    """
    rule = f"{name} must be float images in [0, 1] of shape (b, c, h, w)"
    if not isinstance(x, Tensor):
        raise InputError(f"{rule}, got {type(x).__name__}; convert it with torch.as_tensor.")
    if x.dim() != 4:
        way = f"{name}[None] makes a batch of one image" if x.dim() == 3 else "reshape it"
        raise InputError(f"{rule}, got shape {tuple(x.shape)}; {way}.")
    if x.numel() == 0:
        raise InputError(f"{rule} and hold at least one, got shape {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise InputError(f"{rule}, got {x.dtype}; {_to_float(x)}.")
    if not values:
        return
    low, high = torch.stack(torch.aminmax(x.detach())).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~x.isfinite()).flatten(1).any(dim=1).sum())
        raise InputError(
            f"{rule}, got NaN or infinite pixels in {bad} of {len(x)} images; mend them."
        )
    if low < 0 or high > 1:
        raise InputError(
            f"{rule}, got values from {low:.4g} to {high:.4g}; {_diagnosis(low, high)}."
        )


def check_labels(
    y: object,
    classes: int | None,
    *,
    name: str = "y",
    images: int | None = None,
    values: bool = True,
) -> None:
    """Raise unless y holds class indices.

    Args:
        y: Anything; right is an int64 tensor of shape (b,).
        classes: Number of classes; labels lie in 0..classes - 1. None: any label from 0 on.
        name: What the message calls it.
        images: Number of images that the labels belong to, if it is to be compared.
        values: False checks type, shape and dtype only, and does not wait for the device.

    Raises:
        InputError: If y is no tensor, is empty, one-hot, not int64, out of range, or of another
            length than the images.
    """
    rule = f"{name} must be class indices, an int64 tensor of shape (b,)"
    if not isinstance(y, Tensor):
        raise InputError(f"{rule}, got {type(y).__name__}; convert it with torch.as_tensor.")
    if y.dim() == 2:
        way = f"if it is one-hot, pass {name}.argmax(dim=1)"
        raise InputError(f"{rule}, got shape {tuple(y.shape)}; {way}.")
    if y.dim() != 1:
        raise InputError(f"{rule}, got shape {tuple(y.shape)}; give one index for each image.")
    if y.numel() == 0:
        raise InputError(f"{rule}, got an empty tensor; give at least one image with its label.")
    if y.dtype != torch.int64:
        raise InputError(
            f"{rule}, got {y.dtype}; pass {name}.long() if the values are whole numbers."
        )
    if images is not None and len(y) != images:
        raise InputError(f"{rule}, one for each image, got {len(y)} labels for {images} images.")
    if not values:
        return
    low, high = torch.stack(torch.aminmax(y)).tolist()
    if low < 0 or (classes is not None and high >= classes):
        bound = "0 or more" if classes is None else f"in 0..{classes - 1}"
        way = "number the classes from 0" if low >= 0 else "drop or relabel unlabeled images"
        raise InputError(f"{rule}, {bound}, got values from {low} to {high}; {way}.")


def _to_float(x: Tensor) -> str:
    if x.dtype == torch.uint8:
        return "divide by 255: x.float() / 255"
    return "convert it to float and scale it to [0, 1]"


def _diagnosis(low: float, high: float) -> str:
    if low < 0:
        return (
            "looks normalized: pass plain pixels, the model subtracts its mean and divides by its "
            "std itself"
        )
    if high > 2:
        return "looks like 0..255: divide by 255"
    return "clamp it to [0, 1]"
