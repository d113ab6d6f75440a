"""A few images before and after each attack, with what the model makes of them."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from multirobust.errors import InputError

__all__ = ["GalleryCell", "GalleryRow", "amplified", "png", "png_address"]

GAINS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@final
@dataclass(frozen=True, eq=False)
class GalleryCell:
    """One version of an image and the model's answer to it.

    Args:
        title: Which version: "clean", "linf", "noise", ...
        image: Pixels, uint8, shape (h, w), (h, w, 1) or (h, w, 3).
        prediction: Name of the predicted class.
        correct: Whether it is the true class.
        confidence: Probability that the model gives to its prediction, in [0, 1].
        change: What was added to the image, times `gain`, around middle gray; as `image`. None for
            the image as it is.
        gain: By what the change is multiplied to be seen, above 0.

    Raises:
        InputError: If an image, the confidence or the gain breaks these rules.
    """

    title: str
    image: np.ndarray
    prediction: str
    correct: bool
    confidence: float
    change: np.ndarray | None = None
    gain: float = 1.0

    def __post_init__(self) -> None:
        png(self.image)
        if self.change is not None:
            png(self.change)
        if not 0 < self.gain < math.inf:
            raise InputError(
                f"GalleryCell {self.title!r}: gain must be a finite number above 0, got "
                f"{self.gain!r}; use what `amplified` returns."
            )
        if not 0 <= self.confidence <= 1:
            raise InputError(
                f"GalleryCell {self.title!r}: confidence must be a probability in [0, 1], got "
                f"{self.confidence!r}; pass the softmax of the logits."
            )


@final
@dataclass(frozen=True)
class GalleryRow:
    """The versions of one image; the label says which image and its true class."""

    label: str
    cells: Sequence[GalleryCell]


def amplified(image: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, float]:
    """Return what was added to an image, made visible: gray is no change.

    Args:
        image: Pixels in [0, 1], any shape.
        clean: The image before, same shape.

    Returns:
        uint8 pixels of the difference times a gain around middle gray, and the gain: the largest
        of 1, 2, 5, 10, ..., 200 that keeps every pixel inside, at least 1. Beyond that it is cut.
    """
    change = np.asarray(image, dtype=np.float64) - clean
    largest = float(np.abs(change).max())
    gain = max((g for g in GAINS if g * largest <= 0.5), default=1.0)
    return np.clip(np.round(255 * (0.5 + gain * change)), 0, 255).astype(np.uint8), gain


def png(image: np.ndarray) -> bytes:
    """Encode an image as PNG, without loss.

    Args:
        image: uint8, shape (h, w) or (h, w, 1) for gray, (h, w, 3) for color.

    Raises:
        InputError: If dtype or shape is another.
    """
    image = np.asarray(image)
    gray = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    color = image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (gray or color) or image.size == 0:
        raise InputError(
            f"image: must be uint8 of shape (h, w), (h, w, 1) or (h, w, 3), got {image.dtype} "
            f"{image.shape}; convert with (255 * x).round() and put the channels last."
        )
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image).reshape(height, -1)
    # Each line of a PNG opens with the number of its filter; 0 is none.
    data = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if color else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def png_address(image: np.ndarray) -> str:
    """Return a data address that holds the image itself."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
