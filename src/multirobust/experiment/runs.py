"""Run folders: what one defense, trained with one seed, is kept in.

A run folder holds `recipe.toml` and `run.json` (what it is), `checkpoint.pt`, `metrics.jsonl`,
`timing.jsonl` and `tensorboard/` (while it trains), `model.safetensors`, `defense.safetensors` and
`training.json` (when it has trained), and `evaluation/<name>/` (what it withstood).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multirobust.config import Recipe, load_recipe, to_toml
from multirobust.config.sections import merged
from multirobust.defenses import DEFENSES
from multirobust.errors import InputError, RunError, lookup_error
from multirobust.files import atomic_write
from multirobust.training import read_start
from multirobust.training.run_folder import exclusive

__all__ = [
    "Run",
    "find_runs",
    "identity",
    "make_folder",
    "open_run",
    "plan",
    "start_of",
    "stored_recipe",
    "to_json",
    "training_facts",
]

MARKER, RECIPE, TRAINING = "run.json", "recipe.toml", "training.json"
MODEL, DEFENSE = "model.safetensors", "defense.safetensors"

NOT_IDENTITY = {
    "": {"name", "summary", "defenses", "seeds", "evaluation"},
    "data": {"folder", "download", "test_limit", "unlabeled", "cache", "placement"},
    "training": {
        "accumulate",
        "checkpoint_seconds",
        "device",
        "devices",
        "init_from",
        "replay",
    },
}
"""Fields of a recipe that do not change what is trained. Where the weights to start from lie does
not count; their digest is added by `start_of`.
"""

_OF_PLUS = "defense.plus_"
"""How the fields begin that only the defense `plus` reads."""

PATIENCE = 10.0
"""Seconds to wait for another process that makes the same run at the same time."""

_FACTS = {"seconds": (int, float), "forwards": (int, float), "backwards": (int, float)}


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
        """Whether the training has ended and what it made is there."""
        return all((self.folder / name).is_file() for name in (TRAINING, MODEL, DEFENSE))


def plan(recipe: Recipe, output: Path) -> list[Run]:
    """Return the runs of a recipe: every defense with every seed."""
    return [
        Run(output / f"{defense}-s{seed}", recipe, defense, seed)
        for seed in recipe.seeds
        for defense in recipe.defenses
    ]


def open_run(run: Run) -> None:
    """Create the folder of a run, or make sure that it holds this run and no other.

    Fields that a recipe did not have when the run was made count as having today's default; those
    that only `plus` reads count for `plus` alone.

    Raises:
        InputError: If the weights to start from cannot be read; no folder is made.
        RunError: If it holds another run or other files, or cannot be written.
    """
    ours = identity(run.recipe, run.defense, run.seed) | start_of(run.recipe)
    make_folder(run.folder)
    if _is_new(run.folder):
        with exclusive(run.folder, doing="makes a run", patience=PATIENCE):
            if _is_new(run.folder, to_toml(run.recipe).encode()):  # none made it meanwhile
                atomic_write(run.folder / RECIPE, to_toml(run.recipe).encode())
                atomic_write(run.folder / MARKER, to_json({"format": 1, "identity": ours}))
    _check_same(run, ours)


def _is_new(folder: Path, recipe: bytes | None = None) -> bool:
    """Whether a folder holds no run, but may be made one. Without a recipe, any half-made will do.

    Raises:
        RunError: If it holds other files.
    """
    if (folder / MARKER).is_file():
        return False
    if not _only_begun(folder, recipe) and not (folder / MARKER).is_file():
        raise RunError(f"{folder} holds other files and no run; choose another --output.")
    return True


def _check_same(run: Run, ours: dict[str, Any]) -> None:
    there = _with_defaults(_identity_in(run.folder))
    differ = sorted(n for n in {*there, *ours} if there.get(n) != ours.get(n))
    names = [n for n in differ if not n.startswith(_OF_PLUS) or run.defense == "plus"]
    if names:
        facts = ", ".join(f"{n} {there.get(n)!r} there, {ours.get(n)!r} here" for n in names)
        raise RunError(f"{run.folder} holds another run ({facts}); choose another --output.")


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the runs in these folders, each a run folder or a folder of run folders.

    Raises:
        InputError: If a folder is missing or holds no run.
        RunError: If its files are damaged or cannot be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        try:
            inside = sorted(path.glob(f"*/{MARKER}")) if path.is_dir() else []
            markers = [path / MARKER] if (path / MARKER).is_file() else inside
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}.") from error
        if not markers:
            raise InputError(f"{path} holds no run; name a folder that `multirobust train` wrote.")
        found |= dict.fromkeys(marker.parent for marker in markers)
    return sorted((_load_run(folder) for folder in found), key=_paper_order)


def stored_recipe(folder: Path) -> Recipe:
    """Return the recipe that a run was made with.

    Raises:
        RunError: If it is missing, damaged, or of a version with other fields.
    """
    try:
        return load_recipe(folder / RECIPE)
    except InputError as error:
        raise RunError(
            f"{folder / RECIPE} is damaged or of another version: {error} Restore it, or train "
            "into another --output."
        ) from error


def training_facts(run: Run) -> dict[str, Any]:
    """Return what is known of a finished training: seconds, passes, device.

    Raises:
        RunError: If the file is damaged.
    """
    path = run.folder / TRAINING
    again = "Remove this file and train the run again: its last checkpoint makes it anew."
    facts = _read_json(path, again)
    rules = {**_FACTS, "device": str}
    wrong = [name for name, kind in rules.items() if not isinstance(facts.get(name), kind)]
    if wrong:
        raise RunError(f"{path} is damaged: {', '.join(wrong)} missing or of a wrong kind. {again}")
    return facts


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
    if recipe.data.own and recipe.data.digest is not None:
        facts["data.name"] = "own"  # the digest says which, wherever they lie
    return facts


def start_of(recipe: Recipe) -> dict[str, str]:
    """Return which weights the training starts from, as a part of the identity.

    Raises:
        InputError: If they cannot be read.
    """
    path = recipe.training.init_from
    return {} if path is None else {"training.init_from": read_start(path).digest}


def make_folder(folder: Path) -> None:
    """Make a folder with its parents if it is missing, and write into it to see that it works.

    Raises:
        RunError: If it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error.strerror}; choose another --output."
        ) from error


def to_json(content: Any) -> bytes:
    """Return plain values as an indented JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _read_json(path: Path, way_out: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged or cannot be read: {error}. {way_out}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it holds a {type(content).__name__}. {way_out}")
    return content


def _identity_in(folder: Path) -> dict[str, Any]:
    """Return the identity that a run folder was made with."""
    way_out = "Restore it, or choose another --output."
    facts = _read_json(folder / MARKER, way_out).get("identity")
    if not isinstance(facts, dict) or not isinstance(facts.get("seed"), int):
        raise RunError(f"{folder / MARKER} is damaged: it does not say which run it is. {way_out}")
    if facts.get("defense") not in DEFENSES:
        error = lookup_error("defense", str(facts.get("defense")), DEFENSES)
        raise RunError(f"{folder / MARKER}: {error} Use the version that made it.")
    return facts


def _with_defaults(there: dict[str, Any]) -> dict[str, Any]:
    """Add today's defaults of the fields that a stored identity lacks."""
    return merged(identity(Recipe(), there["defense"], there["seed"]), there)


def _only_begun(folder: Path, recipe: bytes | None) -> bool:
    """Whether a folder is empty, or as a process left it that was killed while it made the run."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if recipe is None:
        return names <= {RECIPE}
    return not names or (names == {RECIPE} and (folder / RECIPE).read_bytes() == recipe)


def _paper_order(run: Run) -> tuple[int, int]:
    return list(DEFENSES).index(run.defense), run.seed


def _load_run(folder: Path) -> Run:
    there, recipe = _with_defaults(_identity_in(folder)), stored_recipe(folder)
    run = Run(folder, recipe, there["defense"], there["seed"])
    ours = identity(recipe, run.defense, run.seed)
    changed = sorted(name for name in {*there} & {*ours} if there[name] != ours[name])
    if changed:
        raise RunError(
            f"{folder / RECIPE} was changed after the run was made ({', '.join(changed)}); restore "
            f"it: {MARKER} says what the run was made with."
        )
    return run
