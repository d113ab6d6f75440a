"""Decoding image files with Pillow, which is imported only here and only when it is needed."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from multirobust.errors import DataError, InputError

__all__ = ["Form", "common_form", "decode", "decoder_version", "read_images"]

GRAY, COLOR = ("1", "L", "LA"), ("CMYK", "HSV", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
"""The 8-bit modes of Pillow."""

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may be, whatever its name says: formats without programs inside."""


DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
"""What Pillow raises for a file that is damaged."""


@final
@dataclass(frozen=True)
class Form:
    """What all images of a data set are turned into.

    Args:
        height: Rows.
        width: Columns.
        gray: One channel instead of three.
    """

    height: int
    width: int
    gray: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return 1 if self.gray else 3, self.height, self.width


def read_images(paths: Sequence[Path], root: Path, *, size: int | None = None) -> Tensor:
    """Return images as uint8 of shape (n, c, h, w), gray if all of them are.

    Args:
        paths: The files.
        root: Names them in messages.
        size: Scale the shorter side to so many pixels and cut a square out of the center; None
            keeps the images, which must then be of one size.

    Raises:
        DataError: If a file is no image, or sizes differ.
        InputError: If Pillow is not installed.
    """
    form = common_form(paths, root, size)
    pixels = torch.empty(len(paths), *form.shape, dtype=torch.uint8)
    for row, path in zip(pixels, paths, strict=True):
        row.copy_(decode(path, form, size=size)[0])
    return pixels


def common_form(paths: Sequence[Path], root: Path, size: int | None = None) -> Form:
    """Return what these images can all be turned into; reads their headers only.

    Raises:
        DataError: As in `read_images`.
    """
    sizes: dict[tuple[int, int], list[Path]] = {}
    gray = True
    for path in paths:
        with _opened(path, path) as image:
            sizes.setdefault(image.size, []).append(path)
            gray = gray and image.mode in GRAY
    if size is not None:
        return Form(size, size, gray)
    if len(sizes) > 1:
        counts = Counter({shape: len(those) for shape, those in sizes.items()}).most_common(4)
        told = ", ".join(f"{w}x{h} ({n}, such as {sizes[w, h][0].name})" for (w, h), n in counts)
        raise DataError(
            f"{root}: images must be of one size, got {len(sizes)}: {told}"
            f"{' and others' if len(sizes) > len(counts) else ''}; give a size to scale and crop "
            "them to: size=32 in Python, --image-size 32 with --data, data.size = 32 in a recipe."
        )
    width, height = next(iter(sizes))
    return Form(height, width, gray)


def decode(path: Path, form: Form, *, size: int | None = None) -> tuple[Tensor, bytes]:
    """Return one image as uint8 of shape (c, h, w), and the SHA-256 of its file.

    Args:
        path: The file; it is read once.
        form: Of the result. An image of another size is refused before it is decoded.
        size: As in `read_images`.

    Raises:
        DataError: If it is no image, or of another size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    with _opened(io.BytesIO(content), path) as image:
        if size is None and image.size != (form.width, form.height):
            raise DataError(
                f"{path} must be an image of {form.width}x{form.height} pixels, got "
                f"{image.size[0]}x{image.size[1]}; replace it, or move it away."
            )
        try:
            image = image.convert("L" if form.gray else "RGB")
        except DAMAGE as error:
            raise _unreadable(path, error) from error
        if size is not None:
            image = _fitted(image, size)
        values = torch.from_numpy(np.array(image, dtype=np.uint8))
    values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
    return values, hashlib.sha256(content).digest()


def decoder_version() -> str:
    """Return what decides how a file is decoded: the versions of Pillow and of its JPEG library."""
    from PIL import features

    return f"{_pillow().__version__} {features.version('libjpeg_turbo') or features.version('jpg')}"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise InputError(
            "Reading image files needs Pillow: pip install 'multirobust[corruptions]'"
        ) from error
    return Image


def _opened(source: Path | io.BytesIO, path: Path) -> Any:
    library = _pillow()
    try:
        image = library.open(source, formats=FORMATS)
    except (*DAMAGE, library.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if image.mode not in GRAY + COLOR:
        image.close()
        raise DataError(
            f"{path} must have 8 bits a channel, it is of Pillow's mode {image.mode!r}; convert it "
            "to 8-bit gray or RGB."
        )
    return image


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as an image ({error}); replace it, or move it away.")


def _fitted(image: Any, size: int) -> Any:
    """Scale the shorter side to the size, and cut out the square in the center."""
    width, height = image.size
    shorter = min(width, height)
    if shorter != size:
        scaled = (width * size // shorter, height * size // shorter)
        image = image.resize(scaled, resample=_pillow().Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))
