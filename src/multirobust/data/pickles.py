"""The pickles of CIFAR, which are read only if their checksums are the published ones."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from multirobust.data.download import download, unpack
from multirobust.data.places import GET_AGAIN, folder_of, ways_to_get
from multirobust.errors import DataError

__all__ = ["SHAPE", "ArraysOnly", "PickleArchive"]

SHAPE = (3, 32, 32)
"""Channels, height and width of an image; a row of a pickle has its bytes in this order."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PickleArchive:
    """A published archive of pickles, and the folder they are unpacked into.

    A pickle can run code when it is opened. So the bytes of a file are compared with its checksum
    first, the same bytes are then read, and even then only NumPy arrays and plain values are made.

    Args:
        title: What error messages call the data set.
        folder: Name of the folder of the pickles.
        url: Address of the archive.
        md5: Checksum of the archive.
        files: Checksum of each pickle by its name.
    """

    title: str
    folder: str
    url: str
    md5: str
    files: Mapping[str, str]

    def locate(self, folder: str | os.PathLike[str] | None) -> Path:
        """Return the folder of the pickles; see `places.folder_of`."""
        return folder_of(folder, self.folder, self.files)

    def get(self, pickles: Path, wanted: Collection[str]) -> None:
        """Download the archive if one of the wanted pickles is missing, and unpack all of them.

        Raises:
            DataError: If the download fails or is interrupted; the next call continues it.
        """
        if all((pickles / name).is_file() for name in wanted):
            return
        archive = download(self.url, pickles, md5=self.md5)
        unpack(archive, pickles, self.files)
        archive.unlink()

    def read(self, path: Path) -> dict[str, Any]:
        """Return the dictionary in one of the pickles, after its checksum has matched.

        Raises:
            DataError: If the file is missing, has another checksum, or names anything else.
        """
        content, md5 = self._bytes(path), self.files[path.name]
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            raise DataError(
                f"{self.title}: {path} must have the published MD5 {md5}, got {found} "
                f"({len(content):,} bytes); it was not opened. Delete it and {GET_AGAIN}"
            )
        try:
            values = ArraysOnly(io.BytesIO(content), encoding="latin1").load()
            if not isinstance(values, dict):
                raise pickle.UnpicklingError(f"it holds a {type(values).__name__}")
        except pickle.UnpicklingError as error:
            raise DataError(
                f"{self.title}: {path} is not one of the official pickles: {error}."
            ) from error
        return values

    def images(
        self, path: Path, count: int, *, labels: str = "labels"
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the images (count, 3072) and labels (count,) of one of the pickles.

        Args:
            path: The pickle.
            count: Images that it must hold.
            labels: Under which key its labels are.

        Raises:
            DataError: As in `read`, or if it holds anything else.
        """
        content = self.read(path)
        data: Any = content.get("data")
        classes: Any = content.get(labels)
        shape = (count, math.prod(SHAPE))
        arrays = (
            isinstance(data, np.ndarray) and data.dtype == np.uint8 and isinstance(classes, list)
        )
        if not arrays or data.shape != shape or len(classes) != count:
            raise DataError(
                f"{self.title}: {path} must hold `data`, uint8 of shape {shape}, and `{labels}`, "
                f"a list of {count}; it holds {sorted(content)}. Download the data again."
            )
        return data, np.array(classes, np.int64)

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise DataError(
                f"{self.title}: {path} is missing. {ways_to_get(self.folder, self.url)}"
            ) from error
        except OSError as error:
            raise DataError(f"{self.title}: {path} cannot be read ({error}).") from error


@final
class ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays and nothing else, under the module names of NumPy 1 and 2."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what the names that make an array stand for; refuse any other."""
        known = {
            ("multiarray", "_reconstruct"): _begun,
            ("numeric", "_frombuffer"): _whole,
            ("_codecs", "encode"): _bytes,
            ("numpy", "ndarray"): _array,
            ("numpy", "dtype"): _dtype,
        }
        package, _, last = module.rpartition(".")
        key = (last if package in ("numpy.core", "numpy._core") else module, name)
        if key not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[key]


def _begun(kind: Any, shape: Any, code: Any) -> NDArray[Any]:
    # Of length 0, as NumPy writes it: the bytes that follow set the length, not a number alone.
    if kind is not _array or shape != (0,) or code not in (b"b", "b"):
        raise pickle.UnpicklingError(f"it begins an array of shape {shape!r}")
    return np.empty(0, np.int8)


def _whole(content: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> NDArray[Any]:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _bytes(text: str, code: str) -> bytes:
    # How Python 3 writes bytes for Python 2.
    if code != "latin1":
        raise pickle.UnpicklingError(f"it writes its bytes as {code!r}")
    return text.encode("latin1")


def _array(*arguments: Any) -> Any:
    raise pickle.UnpicklingError("it makes an array without its bytes")


def _dtype(code: str, align: int = 0, copy: int = 0) -> np.dtype[Any]:
    # Python 2 pickled both flags as integers, which NumPy 2.4 warns of.
    return np.dtype(code, align=bool(align), copy=bool(copy))
