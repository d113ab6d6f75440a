"""Fetch one archive: checked against its checksum, and continued where the last attempt stopped."""

from __future__ import annotations

import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any

from multirobust.errors import DataError

__all__ = ["download", "unpack", "unpack_zip"]

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60


def download(url: str, folder: Path, *, md5: str) -> Path:
    """Download a file into a folder, or return it if it is there with this checksum.

    An interrupted download is left as `<name>.part` and continued by the next call, if the server
    can (HTTP Range), else begun again. The file gets its name only once its checksum is right.

    Args:
        url: Address of the file.
        folder: Where to put it; made if needed.
        md5: Its checksum.

    Raises:
        DataError: If the connection fails or breaks, the checksum is wrong, or the disk is full.
    """
    from pooch import retrieve

    name = url.rsplit("/", 1)[-1]
    part = folder / f"{name}.part"

    def resume(fname: str, action: Any, pooch: Any, *, check_only: bool | None = None) -> None:
        _fetch(fname, part)
        os.replace(part, action)

    try:
        retrieve(url, f"md5:{md5}", fname=name, path=folder, downloader=resume)
    except ValueError as error:
        raise DataError(
            f"{url}: the downloaded file must have MD5 {md5}, and has not; it was deleted. Run the "
            f"same command again, or get the file elsewhere and put it into {folder}."
        ) from error
    except (OSError, HTTPException) as error:
        raise DataError(
            f"{url}: the download failed ({error}). Run the same command again to continue it, or "
            f"get the file elsewhere and put it into {folder}."
        ) from error
    return folder / name


def unpack(archive: Path, folder: Path, names: Collection[str]) -> None:
    """Copy the regular files with these base names out of a tar archive into a folder.

    No path, link, owner or mode of the archive is used, so it cannot write anywhere else. A file
    appears under its name only when it is whole.

    Raises:
        DataError: If the archive cannot be read or the folder cannot be written; or, before
            anything is written, if a file of these names is a link or the like, has an absolute
            path or one with "..", or is there twice.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            members = dict(_named(archive, tar, names))
            for name, member in members.items():
                source = tar.extractfile(member)
                assert source is not None  # a regular file
                _write(source, folder / name)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{archive}: cannot be unpacked into {folder} ({error}).") from error


def unpack_zip(archive: Path, folder: Path, place: Callable[[str], str | None]) -> None:
    """Copy files out of a zip archive into a folder, in the order of the archive.

    A file appears under its name only when it is whole. Links are not made.

    Args:
        archive: The zip file.
        folder: What every file is written below.
        place: From the name of a member to its path below the folder, or None to pass it over. The
            function alone decides where is written, so it must know every name that it accepts.

    Raises:
        DataError: If the archive cannot be read, the folder cannot be written, or a place lies
            outside the folder.
    """
    damage = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                path = None if member.is_dir() else place(member.filename)
                if path is None:
                    continue
                if Path(path).is_absolute() or ".." in Path(path).parts:
                    raise DataError(f"{archive}: {member.filename!r} lies outside {folder}.")
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as source:
                    _write(source, target)
    except damage as error:
        raise DataError(f"{archive}: cannot be unpacked into {folder} ({error}).") from error


def _named(
    archive: Path, tar: tarfile.TarFile, names: Collection[str]
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the members with these base names, and refuse those that no honest archive has."""
    seen: set[str] = set()
    for member in tar:
        path = PurePosixPath(member.name)
        if path.name not in names:
            continue
        problems = {
            "has an absolute path": path.is_absolute(),
            "leads out of its folder": ".." in path.parts,
            "is a link or no file": not member.isreg(),
            "is there twice": path.name in seen,
        }
        for problem, found in problems.items():
            if found:
                raise DataError(
                    f"{archive}: {member.name!r} {problem}, so this is not the published archive; "
                    "nothing was unpacked. Delete it and download it again."
                )
        seen.add(path.name)
        yield path.name, member


def _write(source: IO[bytes], path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK)
    os.replace(part, path)


def _fetch(url: str, part: Path) -> None:
    """Append what is missing of the file to `part`, or start over where that is impossible."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is missing
        if error.code == 416:
            part.unlink()
            return _fetch(url, part)
        raise
    with response:
        _save(response, part, have if response.status == 206 else 0)


def _save(response: HTTPResponse, part: Path, start: int) -> None:
    missing = response.headers.get("Content-Length")
    with part.open("ab" if start else "wb") as target:
        shutil.copyfileobj(response, target, CHUNK)
        end = target.tell()
    if missing is not None and end < start + int(missing):
        raise OSError(f"the connection broke after {end:,} of {start + int(missing):,} bytes")
