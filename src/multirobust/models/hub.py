"""Hugging Face, as far as models need it: the library if it is there, and chosen files."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multirobust.errors import InputError, RunError

__all__ = ["HUB", "hub_library", "is_repository", "refusal", "snapshot"]

HUB = "hf:"
"""What tells a repository from a folder where both can stand."""


def is_repository(text: str) -> bool:
    """Whether a text has the form of a repository's id, "owner/name"."""
    return re.fullmatch(r"[^\W_][\w.-]*/[^\W_][\w.-]*", text, re.ASCII) is not None


def hub_library(what: str) -> Any:
    """Return the module huggingface_hub.

    Args:
        what: What needs it, for the message.

    Raises:
        InputError: If it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise InputError(f"{what} needs huggingface_hub: pip install 'multirobust[hub]'") from error


def snapshot(repository: str, revision: str | None, files: Sequence[str], *, what: str) -> Path:
    """Download some files of a Hugging Face repository, and return their folder.

    Args:
        repository: Its id, "owner/name".
        revision: Branch, tag or commit; None takes the default branch.
        files: Names or patterns of what is wanted; nothing else is downloaded.
        what: How messages call it, such as "model 'hf:me/mine'".

    Raises:
        InputError: If huggingface_hub is not installed.
        RunError: If it cannot be downloaded.
    """
    hub = hub_library(what)
    try:
        return Path(
            hub.snapshot_download(repository, revision=revision, allow_patterns=list(files))
        )
    except Exception as error:
        raise RunError(
            f"{what} cannot be downloaded: {refusal(error)}. Check the id and the connection, and "
            "log in with `hf auth login` if it is private."
        ) from error


def refusal(error: Exception) -> str:
    """Return what a failure on Hugging Face says, in one line."""
    reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
    return f"{type(error).__name__}: {reason}"
