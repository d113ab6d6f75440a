"""Where the files of a data set are looked for, and where decoded images are kept."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["ENVIRONMENT", "GET_AGAIN", "cache_folder", "folder_of", "ways_to_get"]

ENVIRONMENT = "MULTIROBUST_DATA"
"""Environment variable that names the folder of all data sets."""
GET_AGAIN = "pass download=True (on the command line --set data.download=true), or copy it again."
"""What to do about a file that is not as published, once it is deleted."""


def folder_of(folder: str | os.PathLike[str] | None, name: str, files: Collection[str]) -> Path:
    """Return the folder of a data set, whether it is there or not.

    Args:
        folder: Holds `name`, or is it. None means the folder that the environment variable
            MULTIROBUST_DATA names, or else the user's cache.
        name: What the folder of the data set is called, such as "cifar-10-batches-py".
        files: Names by which the folder itself is recognized.
    """
    root = Path(folder or os.environ.get(ENVIRONMENT) or cache_folder()).expanduser()
    direct = root.name == name or any((root / file).is_file() for file in files)
    return root if direct and not (root / name).is_dir() else root / name


def ways_to_get(what: str, url: str) -> str:
    """Return how files that are missing are found or downloaded, in Python and by a command.

    Args:
        what: What the folder to name holds.
        url: Where it is downloaded from.
    """
    return (
        f"Pass the folder that holds {what} (option `folder`, on the command line --set "
        f"data.folder=PATH, or the environment variable {ENVIRONMENT}), or download=True (on the "
        f"command line --set data.download=true) to get it from {url}."
    )


def cache_folder() -> Path:
    """Return the folder in which the package keeps files of its user, whether it is there or not.

    On Linux it is `~/.cache/multirobust`, or `multirobust` below XDG_CACHE_HOME.
    """
    import pooch

    return Path(pooch.os_cache("multirobust"))
