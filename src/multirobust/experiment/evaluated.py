"""What an evaluation left in its folder: whether it is the one asked for, and is whole."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from multirobust import evaluation
from multirobust.data import Split
from multirobust.errors import DataError, RunError
from multirobust.evaluation import Outcomes
from multirobust.evaluation.course import split_digest
from multirobust.evaluation.storage import MANIFEST
from multirobust.training.run_folder import exclusive

__all__ = ["ADVERSARIAL", "PARTIAL", "images_kept", "known_outcomes", "tidy"]

ADVERSARIAL, PARTIAL = "adversarial", "partial"


def known_outcomes(
    folder: Path, manifest: Mapping[str, Any], images: Split, report: Callable[[str], None]
) -> Outcomes | None:
    """Return stored outcomes of the same weights, settings and images, if there are any.

    Args:
        folder: Of the evaluation.
        manifest: What is asked for: "data", "weights" and "evaluation" must agree.
        images: What is evaluated on.
        report: Receives a line that says why stored outcomes are used or not.
    """
    if not (folder / MANIFEST).is_file():
        return None
    try:
        known = evaluation.load(folder)
    except DataError as error:
        report(f"evaluated again, since the stored outcomes cannot be used: {error}")
        return None
    facts = ("data", "weights", "evaluation")
    same = all(known.manifest.get(fact) == manifest[fact] for fact in facts)
    if not same or known.manifest.get("images") != len(images):
        return None
    if known.manifest.get("split_digest") != split_digest(images):
        report("evaluated again, since the images are others than those of the stored outcomes")
        return None
    report("already evaluated with these settings")
    tidy(folder)
    return known


def images_kept(folder: Path, known: Outcomes) -> bool:
    """Whether the adversarial images of stored outcomes are there, all of them and no others.

    The manifest has a SHA-256 for each file. Older ones have none; then a file for each attack is
    enough.
    """
    place = folder / ADVERSARIAL
    noted = known.manifest.get(ADVERSARIAL)
    if not isinstance(noted, dict):
        names = [column.name for column in known.columns]
        return all((place / f"{name}.safetensors").is_file() for name in names)
    return all(_digest(place / f"{name}.safetensors") == noted[name] for name in noted)


def tidy(folder: Path) -> None:
    """Remove partial results that a process left which was killed after it had saved the whole."""
    if (folder / PARTIAL).is_dir():
        with contextlib.suppress(RunError), exclusive(folder, doing="evaluates"):
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
