"""Arrays out of files that nobody vouches for: no code in them runs, no size in them is believed.

Before memory is taken for an array, what its header says is compared with the bytes that are there
and with the memory of the machine.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from multirobust.data.pickles import ArraysOnly
from multirobust.errors import DataError, MultirobustError

__all__ = [
    "EXAMPLE",
    "array_bytes",
    "array_names",
    "array_shape",
    "check_memory",
    "memory_limit",
    "read_array",
    "read_arrays_pickle",
    "read_text",
]

Header: TypeAlias = tuple[tuple[int, ...], np.dtype[Any], bool]
"""Shape and kind of an array, and whether it is stored by columns."""

CHUNK = 1 << 24
LONGEST_TEXT = 1 << 20
FALLBACK_MEMORY = 16 << 30
EXAMPLE = "image=..., label=..."
"""Arguments of numpy.savez that make a file of pseudo-labels, for messages."""
MOST_AXES = 32
LARGEST = np.iinfo(np.int64).max


def memory_limit() -> int:
    """Return the bytes that images may take: half of the machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return FALLBACK_MEMORY // 2


def array_names(path: Path, *, example: str = EXAMPLE) -> tuple[str, ...]:
    """Return the names of the arrays of an `.npz` file.

    Args:
        path: The file.
        example: Arguments of numpy.savez that would make a right file.

    Raises:
        DataError: If the file is missing or no `.npz` file.
    """
    with _reading(path, example), zipfile.ZipFile(path) as archive:
        names = (name for name in archive.namelist() if name.endswith(".npy"))
        return tuple(name.removesuffix(".npy") for name in names)


def array_shape(path: Path, name: str) -> tuple[int, ...]:
    """Return the shape of an array of an `.npz` file, whose bytes are all there.

    Raises:
        DataError: If it is missing or damaged, or holds Python objects.
    """
    with _opened(path, name) as (_, shape, _, _):
        return shape


def array_bytes(path: Path, name: str, *, example: str = EXAMPLE) -> int:
    """Return how many bytes of memory an array of an `.npz` file takes, which are all there.

    Raises:
        DataError: If it is missing or damaged, or holds Python objects.
    """
    with _opened(path, name, example) as (_, shape, dtype, _):
        return math.prod(shape) * dtype.itemsize


def read_array(
    path: Path, name: str, *, rows: int | None = None, example: str = EXAMPLE
) -> NDArray[Any]:
    """Return one array of an `.npz` file, or its first rows, of which alone memory is taken.

    Of an array that is stored by columns, first rows need memory for all of it.

    Args:
        path: The file.
        name: Of the array.
        rows: How many of them; None, or more than there are, means all.
        example: Arguments of numpy.savez that would make a right file.

    Raises:
        DataError: If it is missing or damaged, holds Python objects, or does not fit into memory.
    """
    with _opened(path, name, example) as (stream, shape, dtype, by_columns):
        if not shape:
            raise _damaged(path, f"{name} is a single value", example)
        if not by_columns:
            shape = (min(shape[0], shape[0] if rows is None else rows), *shape[1:])
        size = math.prod(shape) * dtype.itemsize
        check_memory(path, size)
        with _reading(path, example):
            content = _exactly(stream, size)
        return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")[:rows]


def read_text(path: Path, name: str) -> str:
    """Return the one text that an array of an `.npz` file holds.

    Raises:
        DataError: If it is missing or damaged, no text, or longer than a text of ours can be.
    """
    with _opened(path, name) as (stream, shape, dtype, _):
        if shape != () or dtype.kind != "U" or dtype.itemsize > LONGEST_TEXT:
            raise _damaged(path, f"{name} is no text, or too long")
        with _reading(path):
            content = _exactly(stream, dtype.itemsize)
            return str(np.frombuffer(content, dtype)[0])


def read_arrays_pickle(path: Path) -> dict[Any, Any]:
    """Return the dictionary of plain values and NumPy arrays in a pickle, running nothing.

    Any name in the pickle but those that make an array is refused. Its instructions are looked
    through beforehand, since a pickle of a few bytes can ask for any memory.

    Raises:
        DataError: If the file is missing, larger than memory, damaged, or holds anything else.
    """
    try:
        check_memory(path, path.stat().st_size)
        with path.open("rb") as stream:
            _check_places(stream)
            stream.seek(0)
            content = ArraysOnly(stream, encoding="latin1").load()
    except DataError:
        raise
    except FileNotFoundError:
        raise _missing(path) from None
    except Exception as error:  # a foreign file can break the reader in any way
        raise DataError(
            f"{path} is no pickle of plain arrays, or damaged: {error}. Nothing in it was run. Get "
            "it again, or save its arrays with numpy.savez(path, image=..., label=...)."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dictionary of arrays, got {type(content).__name__}.")
    return content


def check_memory(path: Path, size: int) -> None:
    """Raise a DataError if so many bytes are more than images may take."""
    most = memory_limit()
    if size > most:
        raise DataError(
            f"{path} needs {size / 2**30:,.1f} GiB of memory, at most {most / 2**30:,.1f} (half of "
            "this machine's) are used; take fewer images, of a file of pseudo-labels with "
            "data.unlabeled_limit."
        )


@contextlib.contextmanager
def _opened(path: Path, name: str, example: str = EXAMPLE) -> Iterator[tuple[Any, *Header]]:
    """Give the stream of an array, behind its header, and what that says.

    What is raised while the stream is used passes through: who reads from it does so in `_reading`.
    """
    with contextlib.ExitStack() as files:
        with _reading(path, example):
            archive = files.enter_context(zipfile.ZipFile(path))
            member = archive.getinfo(f"{name}.npy")
            stream = files.enter_context(archive.open(member))
            header = _header(stream, path, name, member.file_size)
        yield stream, *header


@contextlib.contextmanager
def _reading(path: Path, example: str = EXAMPLE) -> Iterator[None]:
    """Turn what a foreign file does to its reader, which can be anything, into one DataError."""
    try:
        yield
    except (MultirobustError, MemoryError):
        raise
    except FileNotFoundError:
        raise _missing(path) from None
    except Exception as error:
        raise _damaged(path, error, example) from error


def _header(stream: Any, path: Path, name: str, stored: int) -> Header:
    # Later versions differ in the length of the header only, which may then be of any size.
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name} is of version {version}, which no array of numbers needs")
    try:
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    except MemoryError:  # of Python's parser, for a text that is nested too deeply
        raise ValueError(f"{name} has a header that is none") from None
    if dtype.hasobject:
        raise DataError(
            f"{path}: {name} holds Python objects, which need code to be run; save numbers."
        )
    axes = [axis or 1 for axis in shape]
    if (
        min(shape, default=0) < 0
        or len(shape) > MOST_AXES
        or not 0 < math.prod(axes) * max(dtype.itemsize, 1) <= LARGEST
    ):
        raise ValueError(f"{name} has a shape that no array has")
    if dtype.itemsize == 0:
        raise ValueError(f"{name} holds values of no bytes")
    there, told = stored - stream.tell(), math.prod(shape) * dtype.itemsize
    if there != told:
        raise ValueError(f"{name} should have {told:,} bytes, {there:,} are there")
    return shape, dtype, by_columns and len(shape) > 1


def _exactly(stream: Any, size: int) -> bytearray:
    """Return so many bytes of a stream, or raise a ValueError."""
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size:
        part = stream.read(min(CHUNK, size - done))
        if not part:
            raise ValueError(f"{size:,} bytes were expected, it ends after {done:,}")
        view[done : done + len(part)] = part
        done += len(part)
    return content


def _check_places(stream: BinaryIO) -> None:
    """Refuse a pickle that numbers its objects with gaps: it would be given memory for them."""
    numbered = 0
    for instruction, argument, _ in pickletools.genops(stream):
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if not isinstance(argument, int) or argument > numbered:
                raise pickle.UnpicklingError(f"it numbers its object {numbered} as {argument}")
            numbered += 1
        numbered += instruction.name == "MEMOIZE"


def _missing(path: Path) -> DataError:
    return DataError(
        f"{path} is missing; give the path of a file, from here or in the folder of the data."
    )


def _damaged(path: Path, why: object, example: str = EXAMPLE) -> DataError:
    return DataError(
        f"{path} is no .npz file, or damaged ({why}); get it again, or make it anew with "
        f"numpy.savez(path, {example})."
    )
