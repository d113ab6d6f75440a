"""Outcomes on the disk: a Parquet table of the images and a JSON manifest that vouches for it."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multirobust.errors import DataError, InputError, RunError
from multirobust.evaluation.outcomes import AttackColumn, Outcomes
from multirobust.files import atomic_write, atomic_write_together

__all__ = ["load", "save", "save_images"]

FORMAT = "multirobust outcomes"
VERSION = 1
TABLE, MANIFEST = "outcomes.parquet", "outcomes.json"
_FACTS = ("name", "threat", "radius", "seconds", "forwards", "backwards", "settings")
_AGAIN = "Evaluate the run again to write it anew."


def save(outcomes: Outcomes, folder: Path) -> None:
    """Write `outcomes.parquet` and `outcomes.json`, both whole or neither.

    The table has one row per image with the columns `index`, `label`, `prediction`, and for each
    attack `<name>.state` and `<name>.distance`. The manifest, which takes its name last, holds
    the attacks, the checksum of the table, and `outcomes.manifest`.

    Args:
        outcomes: What to store.
        folder: Folder of the run; created if missing. Earlier outcomes there are replaced.

    Raises:
        InputError: If `outcomes.manifest` holds more than JSON values.
        RunError: If the folder or a file cannot be written; earlier outcomes stay as they were.
    """
    table = _table_bytes(outcomes)
    manifest = _manifest_bytes(outcomes, table)
    _make(folder)
    atomic_write_together([(folder / TABLE, table), (folder / MANIFEST, manifest)])


def save_images(path: Path, index: np.ndarray, images: Tensor) -> str:
    """Write adversarial images as safetensors: "index" (m,), and "images" (m, c, h, w) in float32.

    Args:
        path: The file; its folder is created if missing.
        index: Positions of the images in their split.
        images: In the same order.

    Returns:
        The SHA-256 of the file.

    Raises:
        RunError: If it cannot be written.
    """
    from safetensors.torch import save as to_bytes

    _make(path.parent)
    tensors = {"index": torch.from_numpy(index), "images": images.float().contiguous()}
    content = to_bytes(tensors)
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


def load(folder: Path) -> Outcomes:
    """Read what `save` wrote.

    Args:
        folder: Folder of the run.

    Raises:
        DataError: If a file is missing, truncated, foreign, or not the other's partner.
    """
    manifest = _read_manifest(folder / MANIFEST)
    table = _read(folder / TABLE)
    if hashlib.sha256(table).hexdigest() != manifest["sha256"]:
        raise DataError(
            f"{folder / TABLE}: its checksum is not the one in {MANIFEST}: it is truncated, "
            f"changed or from another evaluation. {_AGAIN}"
        )
    try:
        return _parse(table, manifest)
    except Exception as error:  # a foreign file can break the reader in any way
        raise DataError(
            f"{folder / MANIFEST}: does not describe {TABLE}: {error}. {_AGAIN}"
        ) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be used as a folder: {error.strerror}. Choose one that is writable."
        ) from error


def _table_bytes(outcomes: Outcomes) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    arrays = {
        "index": outcomes.index,
        "label": outcomes.labels,
        "prediction": outcomes.predictions,
    }
    for column in outcomes.columns:
        arrays[f"{column.name}.state"] = column.states
        arrays[f"{column.name}.distance"] = column.distances
    stream = io.BytesIO()
    parquet.write_table(pa.table(arrays), stream)
    return stream.getvalue()


def _manifest_bytes(outcomes: Outcomes, table: bytes) -> bytes:
    content = {
        "format": FORMAT,
        "version": VERSION,
        "images": len(outcomes),
        "sha256": hashlib.sha256(table).hexdigest(),
        "attacks": [
            {fact: getattr(column, fact) for fact in _FACTS} for column in outcomes.columns
        ],
        "manifest": outcomes.manifest,
    }
    try:
        return json.dumps(content, indent=2, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Outcomes: manifest must hold JSON values only (text, finite numbers, true, false, "
            f"null, lists, dicts): {error}. Convert the others to text."
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}. Give the folder of a run that was "
            f"evaluated, or evaluate this one."
        ) from error


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is truncated or not JSON ({error}). {_AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: is not a manifest of outcomes. Give the folder of a run.")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path}: has format version {manifest.get('version')!r}, this release reads "
            f"{VERSION}. Use the release that wrote it, or evaluate the run again."
        )
    if not isinstance(manifest.get("sha256"), str):
        raise DataError(f"{path}: holds no checksum of {TABLE}. {_AGAIN}")
    return manifest


def _parse(table: bytes, manifest: dict[str, Any]) -> Outcomes:
    from pyarrow import parquet

    if not isinstance(manifest["manifest"], dict):
        raise TypeError("its manifest is no mapping")
    arrays = parquet.read_table(io.BytesIO(table))

    def column(name: str) -> Any:
        return arrays.column(name).to_numpy()

    attacks = tuple(
        AttackColumn(
            **{fact: attack[fact] for fact in _FACTS},
            states=column(f"{attack['name']}.state"),
            distances=column(f"{attack['name']}.distance"),
        )
        for attack in manifest["attacks"]
    )
    return Outcomes(
        index=column("index"),
        labels=column("label"),
        predictions=column("prediction"),
        columns=attacks,
        manifest=manifest["manifest"],
    )
