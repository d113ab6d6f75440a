"""Run folders: what one defense, trained with one seed, is kept in.

A run folder holds `recipe.toml` and `run.json` (what it is), `checkpoint.pt`, `metrics.jsonl`,
`timing.jsonl` and `tensorboard/` (while it trains), `model.safetensors`, `defense.safetensors` and
`training.json` (when it has trained), and `evaluation/<suite>/` (what it withstood).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multirobust.config import Recipe, load_recipe, to_toml
from multirobust.defenses import DEFENSES
from multirobust.errors import DataError, RunError
from multirobust.files import atomic_write

__all__ = [
    "Run",
    "find_runs",
    "identity",
    "make_folder",
    "open_run",
    "plan",
    "read_json",
    "to_json",
]

NOT_IDENTITY = {
    "": {"name", "summary", "defenses", "seeds", "evaluation"},
    "data": {"folder", "download", "test_limit"},
    "training": {"device", "checkpoint_seconds"},
}
"""Fields of a recipe that do not change what is trained."""


@dataclass(frozen=True)
class Run:
    """One defense trained with one seed, and where it is kept."""

    folder: Path
    recipe: Recipe
    defense: str
    seed: int

    @property
    def name(self) -> str:
        """The defense and the seed, such as "sat-s0"."""
        return f"{self.defense}-s{self.seed}"

    @property
    def trained(self) -> bool:
        """Whether the training has ended."""
        return (self.folder / "training.json").is_file()


def plan(recipe: Recipe, output: Path) -> list[Run]:
    """Return the runs of a recipe: every defense with every seed."""
    return [
        Run(output / f"{defense}-s{seed}", recipe, defense, seed)
        for seed in recipe.seeds
        for defense in recipe.defenses
    ]


def open_run(run: Run) -> None:
    """Create the folder of a run, or make sure that it holds this run and no other.

    Raises:
        RunError: If it holds another run or other files, or cannot be written.
    """
    make_folder(run.folder)
    marker = run.folder / "run.json"
    ours = identity(run.recipe, run.defense, run.seed)
    if marker.is_file():
        there = read_json(marker)["identity"]
        names = sorted(n for n in {*there, *ours} if there.get(n) != ours.get(n))
        if names:
            facts = ", ".join(
                f"{n} {there.get(n)!r} there, {ours.get(n)!r} here" for n in names
            )
            raise RunError(f"{run.folder} holds another run ({facts}); choose another --output.")
        return
    if any(run.folder.iterdir()):
        raise RunError(f"{run.folder} holds other files and no run; choose another --output.")
    atomic_write(run.folder / "recipe.toml", to_toml(run.recipe).encode())
    atomic_write(marker, to_json({"format": 1, "identity": ours}))


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the runs in these folders, each a run folder or a folder of run folders.

    Raises:
        RunError: If a folder holds no run, or its files cannot be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        inside = sorted(path.glob("*/run.json")) if path.is_dir() else []
        markers = [path / "run.json"] if (path / "run.json").is_file() else inside
        if not markers:
            raise RunError(f"{path} holds no run; name a folder that `multirobust train` wrote.")
        found |= dict.fromkeys(marker.parent for marker in markers)
    runs = [_load_run(folder) for folder in found]
    return sorted(runs, key=_paper_order)


def identity(recipe: Recipe, defense: str, seed: int) -> dict[str, Any]:
    """Return what decides the weights of a run, as flat plain values."""
    facts: dict[str, Any] = {"defense": defense, "seed": seed}
    for section, value in recipe.model_dump(mode="json").items():
        if section in NOT_IDENTITY[""]:
            continue
        fields = value if isinstance(value, dict) else {"": value}
        for field, content in fields.items():
            if field not in NOT_IDENTITY.get(section, ()):
                facts[f"{section}.{field}".rstrip(".")] = content
    return facts


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error.strerror}; choose another --output."
        ) from error


def to_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; train the run again.") from error


def _paper_order(run: Run) -> tuple[int, int]:
    names = list(DEFENSES)
    return names.index(run.defense), run.seed


def _load_run(folder: Path) -> Run:
    facts = read_json(folder / "run.json")["identity"]
    recipe = load_recipe(folder / "recipe.toml")
    return Run(folder, recipe, facts["defense"], facts["seed"])
