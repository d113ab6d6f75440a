"""Many image files, decoded once and kept for the next start: in memory, or beyond it."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

import numpy as np
import torch
from torch import Tensor

from multirobust.data.pictures import Form, common_form, decode, decoder_version
from multirobust.data.places import cache_folder
from multirobust.errors import DataError, RunError
from multirobust.files import atomic_write

__all__ = ["Decoded", "decoded", "decoded_on_disk"]

FORMAT = 1
"""Of the stored files; another number makes them anew."""

FEW = 1000
"""Fewer images are decoded anew at every start: it takes less than a second."""


@final
@dataclass(frozen=True, eq=False)
class Decoded:
    """Images in memory.

    Args:
        images: uint8, shape (n, c, h, w).
        digest: SHA-256 of the contents of the first files, in their order.
    """

    images: Tensor
    digest: str


def decoded(
    paths: Sequence[Path],
    root: Path,
    *,
    digest_of: int,
    form: Form | None = None,
    size: int | None = None,
    cache: bool = True,
) -> Decoded:
    """Read image files, or find them decoded in the user's cache.

    From 1,000 images on, they are kept as one array in `decoded` below `places.cache_folder`,
    under a digest of their listing: every path, length and time of change, what they are turned
    into, and the version of the decoder. Another listing is another array. The array is
    memory-mapped, so it takes memory only where it is read. If it cannot be written, nothing is
    kept, and that is no error.

    Args:
        paths: The files, in the order of the images.
        root: A folder that they all lie in.
        digest_of: How many of the first files the digest is of.
        form: What they are turned into; None finds what all of them can be.
        size: As in `pictures.read_images`.
        cache: Whether to keep and to look for decoded images.

    Raises:
        DataError: If a file is no image, or they are not of one size.
    """
    if not cache or len(paths) < FEW:
        return _decode(paths, root, digest_of, form, size)
    shelf = cache_folder() / "decoded"
    listing = _listing(paths, root, digest_of, form, size)
    known = _stored(shelf, listing, len(paths), form)
    if known is None:
        known = _decode(paths, root, digest_of, form, size)
        with contextlib.suppress(RunError, OSError):
            shelf.mkdir(parents=True, exist_ok=True)
            array = known.images.numpy()
            path = shelf / f"{listing}-{known.digest}.npy"
            atomic_write(path, lambda stream: np.lib.format.write_array(stream, array))
    return known


def decoded_on_disk(
    paths: Sequence[Path],
    root: Path,
    *,
    digest_of: int,
    size: int | None = None,
    places: Sequence[int] | None = None,
) -> Decoded:
    """Decode image files into the user's cache without ever holding more than one of them.

    The array is that of `decoded`, and memory-mapped as there.

    Args:
        paths: The files.
        root: A folder that they all lie in.
        digest_of: How many of the first files the digest is of.
        size: As in `pictures.read_images`.
        places: The place of each image in the array, a permutation; None keeps their order.

    Raises:
        DataError: If a file is no image, or they are not of one size.
        RunError: If the cache cannot be written.
    """
    shelf = cache_folder() / "decoded"
    listing = _listing(paths, root, digest_of, None, size, places)
    known = _stored(shelf, listing, len(paths), None)
    if known is not None:
        return known
    digest = hashlib.sha256()

    def write(stream: BinaryIO) -> None:
        form = common_form(paths, root, size)
        shape = (len(paths), *form.shape)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        start, length = stream.tell(), math.prod(form.shape)
        for i, path in enumerate(paths):
            pixels, content = decode(path, form, size=size)
            stream.seek(start + length * (places[i] if places is not None else i))
            stream.write(pixels.contiguous().numpy().tobytes())
            if i < digest_of:
                digest.update(content)

    with contextlib.suppress(OSError):  # it is named where the file cannot be written
        shelf.mkdir(parents=True, exist_ok=True)
    atomic_write(shelf / f"{listing}.npy", write)  # its digest is not known before
    path = shelf / f"{listing}-{digest.hexdigest()}.npy"
    with contextlib.suppress(FileNotFoundError):  # another process has just made the same
        os.replace(shelf / f"{listing}.npy", path)
    return Decoded(torch.from_numpy(np.load(path, mmap_mode="c")), digest.hexdigest())


def _decode(
    paths: Sequence[Path], root: Path, digest_of: int, form: Form | None, size: int | None
) -> Decoded:
    form = form or common_form(paths, root, size)
    images = torch.empty(len(paths), *form.shape, dtype=torch.uint8)
    state = hashlib.sha256()
    for i, path in enumerate(paths):
        pixels, content = decode(path, form, size=size)
        images[i] = pixels
        if i < digest_of:
            state.update(content)
    return Decoded(images, state.hexdigest())


def _listing(
    paths: Sequence[Path],
    root: Path,
    digest_of: int,
    form: Form | None,
    size: int | None,
    places: Sequence[int] | None = None,
) -> str:
    """Return a digest of all that decides the images, without opening a file."""
    state = hashlib.sha256(
        repr((FORMAT, decoder_version(), str(root.resolve()), digest_of, form, size)).encode()
    )
    if places is not None:
        state.update(np.asarray(places, np.int64).tobytes())
    for path in paths:
        try:
            facts = os.stat(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}).") from error
        state.update(os.fsencode(path.relative_to(root)))
        state.update(f"\0{facts.st_size} {facts.st_mtime_ns}\n".encode())
    return state.hexdigest()[:32]


def _stored(shelf: Path, listing: str, count: int, form: Form | None) -> Decoded | None:
    for path in shelf.glob(f"{listing}-*.npy"):
        try:
            # Copy on write: PyTorch takes no read-only array, and the file stays as it is.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        right = array.ndim == 4 and array.dtype == np.uint8 and len(array) == count
        if right and (form is None or array.shape[1:] == form.shape):
            return Decoded(torch.from_numpy(array), path.stem.partition("-")[2])
    return None
