"""What a long evaluation has done so far, on the disk, so that it can be killed at any point."""

from __future__ import annotations

import io
import json
import platform
import shutil
import warnings
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from multirobust.errors import RunError
from multirobust.evaluation.runner import BlockResult
from multirobust.evaluation.state import State
from multirobust.files import atomic_write

__all__ = ["PartialResults"]

IDENTITY = "identity.json"


@final
class PartialResults:
    """One small file for each attack and block that is done.

    Args:
        folder: Where they lie, or None to keep nothing. What an evaluation with another identity
            left there is removed.
        identity: All that decides the results, as JSON values.
        joining: Only add to what another process plans; nothing is made or removed.

    Raises:
        RunError: If the folder cannot be used, or, joining, is not of an evaluation like this.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], *, joining: bool = False):
        self.folder = folder
        if folder is None:
            return
        text = json.dumps(identity, sort_keys=True, indent=1)
        if joining:
            _check_joined(folder, identity)
            return
        try:
            if folder.exists() and _read_text(folder / IDENTITY) != text:
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{folder}: cannot be used as a folder: {error.strerror}. Choose one that is "
                "writable."
            ) from error
        atomic_write(folder / IDENTITY, text.encode())

    def load(self, attack: str, first: int, images: int) -> BlockResult | None:
        """Return the result of an attack on the block that starts at a position, if it is there.

        A damaged one is named in a warning and counts as missing.

        Args:
            attack: Its name.
            first: Position of the first image of the block.
            images: How many images of the block the attack sees.
        """
        if self.folder is None:
            return None
        path = self._path(attack, first)
        try:
            result = _parsed(path.read_bytes())
            _check(result, images)
        except FileNotFoundError:
            return None
        except Exception as error:  # a foreign file can break the reader in any way
            warnings.warn(f"{path} is damaged ({error}): attacked again.", stacklevel=2)
            return None
        return result

    def has(self, attack: str, first: int) -> bool:
        """Whether the result of an attack on the block that starts at a position is there."""
        return self.folder is not None and self._path(attack, first).is_file()

    def save(self, attack: str, first: int, result: BlockResult) -> None:
        """Keep the result of an attack on a block, whole or not at all."""
        if self.folder is None:
            return
        arrays = {"states": result.states.numpy(), "distances": result.distances.numpy()}
        if result.images is not None:
            arrays["images"] = result.images.numpy()
        stream = io.BytesIO()
        np.savez(
            stream,
            **arrays,
            errors=json.dumps(sorted(result.errors)),
            seconds=result.seconds,
            forwards=result.forwards,
            backwards=result.backwards,
        )
        atomic_write(self._path(attack, first), stream.getvalue())

    def clear(self) -> None:
        """Remove the files: the evaluation has been written as a whole."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, attack: str, first: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{attack}.{first}.npz"


def _parsed(content: bytes) -> BlockResult:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        images = torch.from_numpy(stored["images"]) if "images" in stored else None
        return BlockResult(
            states=torch.from_numpy(stored["states"]),
            distances=torch.from_numpy(stored["distances"]),
            images=images,
            errors=frozenset(json.loads(str(stored["errors"]))),
            seconds=float(stored["seconds"]),
            forwards=int(stored["forwards"]),
            backwards=int(stored["backwards"]),
        )


def _check(result: BlockResult, images: int) -> None:
    states, distances = result.states, result.distances
    if states.shape != (images,) or distances.shape != (images,):
        raise ValueError(f"it is of {len(states)} images, not of {images}")
    if states.dtype != torch.int64 or not set(states.tolist()) <= {*State}:
        raise ValueError("it holds other numbers than states")
    if not bool(distances.isfinite().all() & (distances >= 0).all()):
        raise ValueError("it holds other numbers than distances")


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _check_joined(folder: Path, identity: dict[str, Any]) -> None:
    """Raise unless a folder is of this evaluation."""
    text = _read_text(folder / IDENTITY)
    if text is None:
        raise RunError(
            f"{folder}: cannot be read on {platform.node()}; the folder of a run must lie at the "
            "same path on every machine that works on it."
        )
    there, here = json.loads(text), json.loads(json.dumps(identity))
    changed = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if changed:
        raise RunError(
            f"{folder}: is of an evaluation with other {', '.join(changed)} than {platform.node()} "
            "has; give every machine the same data, weights and version."
        )
