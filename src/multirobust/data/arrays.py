"""Images of one's own, in the arrays of an `.npz` file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirobust.data.datasets import Layout, Split
from multirobust.data.untrusted import array_bytes, array_names, check_memory, read_array
from multirobust.errors import DataError, InputError

__all__ = ["npz", "read_arrays", "split_of"]

PAIRS = (
    ("images", "labels"),
    ("x", "y"),
    ("x_test", "y_test"),
    ("test_images", "test_labels"),
    ("data", "labels"),
)
"""Names of images and labels in an `.npz` file."""

GRID_TOLERANCE = 1e-6
CHUNK = 1024


def npz(path: str | Path, *, layout: Layout | None = None) -> Split:
    """Read images and labels from the arrays of an `.npz` file.

    The arrays are named images and labels, x and y, x_test and y_test, test_images and test_labels,
    or data and labels. Images are uint8 in 0..255 of shape (n, h, w, c), (n, c, h, w) or, if gray,
    (n, h, w); or floats in [0, 1] that are whole multiples of 1/255 to within 1e-6, since a split
    stores bytes. Labels are integers of shape (n,) or (n, 1).

    Args:
        path: The file; Python objects in it are refused, not loaded.
        layout: Of the images, where their shape does not tell where the channels are.

    Returns:
        The images without a source: evaluation does not guess the radii of data that it does not
        know.

    Raises:
        DataError: If the file is missing or damaged, or its arrays are not of this form.
    """
    path = Path(path).expanduser()

    def pair(names: Collection[str]) -> Sequence[str]:
        pairs = [pair for pair in PAIRS if set(pair) <= set(names)]
        if len(pairs) == 1:
            return pairs[0]
        accepted = "; ".join(" and ".join(pair) for pair in PAIRS)
        rule = "no pair" if not pairs else "several pairs"
        raise DataError(
            f"{path} must hold one pair of arrays out of: {accepted}. It holds {rule} of them, "
            f"namely {', '.join(sorted(names)) or 'nothing'}; save it with one."
        )

    images, labels = read_arrays(path, pair, example="images=..., labels=...")
    return split_of(images, labels, path, layout=layout)


def read_arrays(
    path: Path, choose: Callable[[Collection[str]], Sequence[str]], *, example: str
) -> list[NDArray[Any]]:
    """Return arrays of a file as they are stored, and read no others.

    What their headers say is compared with the bytes that are there before memory is taken.

    Args:
        path: The file; Python objects in it are refused, not loaded.
        choose: Is given the names of all arrays, and returns those to read.
        example: Arguments of numpy.savez that would make a right file.

    Raises:
        DataError: If the file is missing or damaged, holds Python objects, or would take more
            memory than images may; see `untrusted.memory_limit`.
    """
    names = choose(array_names(path, example=example))
    check_memory(path, sum(array_bytes(path, name, example=example) for name in names))
    return [read_array(path, name, example=example) for name in names]


def split_of(
    images: NDArray[Any], labels: NDArray[Any], where: object, *, layout: Layout | None = None
) -> Split:
    """Return stored images and labels as a split; `npz` says what form they may have.

    Args:
        images: The images.
        labels: Their labels.
        where: Names the file in messages.
        layout: Of the images, where their shape does not tell where the channels are.

    Raises:
        DataError: If they are not of this form.
    """
    if images.ndim == 3:
        images, layout = images[:, None], "nchw"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    try:
        if np.issubdtype(images.dtype, np.floating):
            images = _bytes(images)
        return Split.from_arrays(images, labels, layout=layout)
    except InputError as error:
        raise DataError(f"{where}: {error}") from None


def _bytes(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Return floats in [0, 1] as the bytes that they are multiples of, or raise an InputError."""
    low, high = float(images.min(initial=0)), float(images.max(initial=0))
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"float images must lie in [0, 1], got values from {low:.4g} to {high:.4g}; save the "
            "original 8-bit images as uint8."
        )
    stored, worst = np.empty(images.shape, np.uint8), 0.0
    for start in range(0, len(images), CHUNK):
        exact = images[start : start + CHUNK].astype(np.float64)
        whole = np.round(exact * 255)
        worst = max(worst, float(np.abs(exact - whole / 255).max()))
        stored[start : start + CHUNK] = whole.astype(np.uint8)
    if worst > GRID_TOLERANCE:
        raise InputError(
            f"float images must be whole multiples of 1/255 to within {GRID_TOLERANCE:g}, since "
            f"bytes are stored, got one that is {worst:.2g} away; save them as uint8, which "
            "rounds them, (255 * images).round().astype(numpy.uint8), if that is meant."
        )
    return stored
