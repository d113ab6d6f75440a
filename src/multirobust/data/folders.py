"""Images of one's own, in a folder for each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from multirobust.data.datasets import Split
from multirobust.data.holdout import stratified_order
from multirobust.data.pictures import read_images
from multirobust.errors import DataError, InputError, suggestion

__all__ = ["class_names", "image_folder", "list_images"]

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


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
    pixels = read_images([path for path, _ in found], Path(folder), size=size)
    return Split(pixels, torch.tensor([label for _, label in found], dtype=torch.int64))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file():
            yield path
