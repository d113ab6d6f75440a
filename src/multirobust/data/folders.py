"""Images of one's own: a folder for each class, or the arrays of an `.npz` file."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multirobust.data.datasets import Layout, Split
from multirobust.data.holdout import stratified_order
from multirobust.errors import DataError, InputError, suggestion

__all__ = ["class_names", "image_folder", "list_images", "npz"]

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
GRAY, COLOR = ("1", "L", "LA"), ("CMYK", "HSV", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
"""The 8-bit modes of Pillow."""

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


def class_names(folder: str | Path) -> tuple[str, ...]:
    """Return the names of the subfolders in sorted order: label i is the i-th name.

    Folders whose name begins with a dot are passed over.

    Raises:
        DataError: If there is no such folder, or it has no subfolders.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give one with a subfolder of images for each class.")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{root} has no subfolders; put the images of each class into one.")
    return tuple(names)


def list_images(
    folder: str | Path, *, classes: Sequence[str] | None = None
) -> list[tuple[Path, int]]:
    """Return every image file of a folder with its label, in the order of `image_folder`.

    Files are found at any depth below the folder of their class. The order is a fixed stratified
    shuffle of the sorted paths, so that the first images are of all classes; it depends on the
    number of images in each class only.

    Args:
        folder: Holds a subfolder for each class.
        classes: Names of the classes in the order of the model's logits, if it is not the sorted
            one or not all have images; None takes `class_names`.

    Raises:
        DataError: If there is no image.
        InputError: If a subfolder is none of the given classes.
    """
    root, there = Path(folder).expanduser(), class_names(folder)
    names = tuple(classes) if classes is not None else there
    foreign = [name for name in there if name not in names]
    if foreign:
        raise InputError(
            f"classes must name every subfolder of {root}, got none for {foreign[0]!r}."
            f"{suggestion(foreign[0], names)} Add it, or move the folder away."
        )
    found = [(path, names.index(name)) for name in there for path in _files(root / name)]
    if not found:
        raise DataError(
            f"{root} holds no images in its subfolders ({', '.join(there[:5])}); images end in "
            f"{', '.join(EXTENSIONS)}."
        )
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    return [found[i] for i in stratified_order(labels, seed=0).tolist()]


def image_folder(
    folder: str | Path,
    *,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> Split:
    """Read a folder that has a subfolder of images for each class.

    Images are gray (1 channel) if all that are read are, and RGB otherwise. Transparency is dropped
    and rotation marks of cameras are not applied, as in torchvision's ImageFolder.

    Args:
        folder: See `list_images`, which also gives the order.
        size: Scale the shorter side to so many pixels (bilinear, antialiased) and cut a square out
            of the center. None keeps the images, which must then be of one size.
        classes: Names of the classes in the order of the model's logits; None sorts the subfolders.
        limit: Read only the first so many images; more than there are means all.

    Returns:
        The images without a source: evaluation does not guess the radii of data that it does not
        know.

    Raises:
        DataError: If there is no image, one cannot be read, or sizes differ.
        InputError: If an argument breaks its rule.
    """
    for name, value in (("size", size), ("limit", limit)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise InputError(f"{name} must be a whole number, 1 or more, or None, got {value!r}.")
    found = list_images(folder, classes=classes)[:limit]
    paths = [path for path, _ in found]
    shape, gray = _common_form(paths, Path(folder), size)
    pixels = torch.empty(len(paths), 1 if gray else 3, *shape, dtype=torch.uint8)
    for row, path in zip(pixels, paths, strict=True):
        row.copy_(_pixels(path, "L" if gray else "RGB", size))
    return Split(pixels, torch.tensor([label for _, label in found], dtype=torch.int64))


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
    images, labels = _arrays(path)
    if images.ndim == 3:
        images, layout = images[:, None], "nchw"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    try:
        if np.issubdtype(images.dtype, np.floating):
            images = _bytes(images)
        return Split.from_arrays(images, labels, layout=layout)
    except InputError as error:
        raise DataError(f"{path}: {error}") from None


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file():
            yield path


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise InputError(
            "Reading image files needs Pillow: pip install 'multirobust[corruptions]'"
        ) from error
    return Image


def _opened(path: Path) -> Any:
    library = _pillow()
    try:
        return library.open(path)
    except (OSError, SyntaxError, ValueError, library.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as an image ({error}); replace it, or move it away.")


def _common_form(paths: Sequence[Path], root: Path, size: int | None) -> tuple[list[int], bool]:
    """Return height and width of all images, and whether all are gray; reads headers only."""
    sizes: dict[tuple[int, int], list[Path]] = {}
    modes = set()
    for path in paths:
        with _opened(path) as image:
            sizes.setdefault(image.size, []).append(path)
            modes.add(image.mode)
            if image.mode not in GRAY + COLOR:
                raise DataError(
                    f"{path} must have 8 bits a channel, it is of Pillow's mode {image.mode!r}; "
                    "convert it to 8-bit gray or RGB."
                )
    gray = modes <= set(GRAY)
    if size is not None:
        return [size, size], gray
    if len(sizes) > 1:
        counts = Counter({shape: len(those) for shape, those in sizes.items()}).most_common(4)
        told = ", ".join(f"{w}x{h} ({n}, such as {sizes[w, h][0].name})" for (w, h), n in counts)
        raise DataError(
            f"{root}: images must be of one size, got {len(sizes)}: {told}"
            f"{' and others' if len(sizes) > len(counts) else ''}; give size=... to scale and crop "
            "them."
        )
    width, height = next(iter(sizes))
    return [height, width], gray


def _pixels(path: Path, mode: str, size: int | None) -> Tensor:
    """Return one image as uint8 of shape (c, h, w)."""
    with _opened(path) as image:
        try:
            image = image.convert(mode)
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from error
        if size is not None:
            image = _fitted(image, size)
        values = torch.from_numpy(np.array(image, dtype=np.uint8))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def _fitted(image: Any, size: int) -> Any:
    """Scale the shorter side to the size, and cut out the square in the center."""
    width, height = image.size
    shorter = min(width, height)
    if shorter != size:
        scaled = (width * size // shorter, height * size // shorter)
        image = image.resize(scaled, resample=_pillow().Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the two arrays of a file, as they are stored."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            names = list(content.files)
            pairs = [pair for pair in PAIRS if set(pair) <= set(names)]
            if len(pairs) == 1:
                return content[pairs[0][0]], content[pairs[0][1]]
    except FileNotFoundError:
        raise DataError(f"{path} is missing; give the path of an .npz file.") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        problem = f"is no .npz file, or damaged ({error}); make it anew"
        if "Object arrays" in str(error):
            problem = "holds Python objects, which need code to be run; save arrays of numbers"
        raise DataError(
            f"{path} {problem} with numpy.savez_compressed(path, images=..., labels=...)."
        ) from error
    accepted = "; ".join(" and ".join(pair) for pair in PAIRS)
    rule = "no pair" if not pairs else "several pairs"
    raise DataError(
        f"{path} must hold one pair of arrays out of: {accepted}. It holds {rule} of them, namely "
        f"{', '.join(sorted(names)) or 'nothing'}; save it with one."
    )


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
