"""One JSON file for the published numbers of several runs: the facts that every table derives from.

Distances and images are left out, the state of every image under every attack is kept, so that a
table made from the file is the table made from the runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multirobust.errors import DataError
from multirobust.evaluation.outcomes import AttackColumn, Outcomes
from multirobust.files import atomic_write
from multirobust.report.tables import RunResult, estimate

__all__ = ["read_record", "write_record"]

FORMAT, VERSION = "multirobust results", 1
_ATTACK = ("name", "threat", "radius", "seconds", "forwards", "backwards", "settings")


def write_record(results: Sequence[RunResult], path: Path, *, command: str = "") -> None:
    """Write the facts of several runs as one JSON file.

    Args:
        results: The runs; those whose outcomes carry the same recipe share one copy of it.
        path: The file; its folder must exist.
        command: The command that made the numbers.

    Raises:
        RunError: If the file cannot be written.
    """
    recipes: list[Any] = []
    runs = [_run(result, recipes) for result in results]
    content = {"format": FORMAT, "version": VERSION, "command": command}
    content |= {"recipes": recipes, "runs": runs}
    atomic_write(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_record(path: Path) -> list[RunResult]:
    """Return the runs of a file that `write_record` wrote, their distances zero.

    Raises:
        DataError: If the file cannot be read or is something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
        return [_result(run, content["recipes"]) for run in content["runs"]]
    except Exception as error:  # a foreign file can break the reader in any way
        raise DataError(
            f"{path}: is not a results file of this program ({error}); make one with "
            "`multirobust compare RUN... --record FILE`."
        ) from error


def _run(result: RunResult, recipes: list[Any]) -> dict[str, Any]:
    outcomes = result.outcomes
    manifest = dict(outcomes.manifest)
    recipe = _without_places(manifest.pop("recipe", None))
    if recipe not in recipes:
        recipes.append(recipe)
    keys = ("clean", *outcomes.threats, "union", "avg")
    views = {key: estimate(outcomes, key) for key in keys}
    return {
        "defense": result.name,
        "seed": result.seed,
        "accuracy": {
            key: [round(number, 4) for number in (view.value, view.low, view.high)]
            for key, view in views.items()
            if view is not None
        },
        "training_seconds": result.training_seconds,
        "forwards": result.forwards,
        "backwards": result.backwards,
        "device": result.device,
        "recipe": recipes.index(recipe),
        "manifest": manifest,
        "index": _integers(outcomes.index),
        "labels": _integers(outcomes.labels),
        "predictions": _integers(outcomes.predictions),
        "attacks": [
            {key: getattr(column, key) for key in _ATTACK}
            | {"states": "".join(map(str, column.states))}
            for column in outcomes.columns
        ],
    }


def _without_places(recipe: Any) -> Any:
    """Leave out where files lay on the machine that trained: it says nothing to anyone else.

    Of files that have no published name, the name without the folder stays, and the digest.
    """
    if not isinstance(recipe, Mapping):
        return recipe
    kept = dict(recipe)
    for section, names in (("data", ("name", "unlabeled")), ("training", ("init_from",))):
        if isinstance(recipe.get(section), Mapping):
            fields = {key: value for key, value in recipe[section].items() if key != "folder"}
            fields |= {name: Path(fields[name]).name for name in names if fields.get(name)}
            kept[section] = fields
    return kept


def _result(run: Mapping[str, Any], recipes: Sequence[Any]) -> RunResult:
    columns = []
    for attack in run["attacks"]:
        states = np.array([int(state) for state in attack["states"]], dtype=np.uint8)
        facts = {key: attack[key] for key in _ATTACK}
        columns.append(AttackColumn(states=states, distances=np.zeros(len(states)), **facts))
    outcomes = Outcomes(
        index=_array(run["index"]),
        labels=_array(run["labels"]),
        predictions=_array(run["predictions"]),
        columns=tuple(columns),
        manifest={**run["manifest"], "recipe": recipes[run["recipe"]]},
    )
    return RunResult(
        run["defense"],
        run["seed"],
        outcomes,
        training_seconds=run["training_seconds"],
        forwards=run["forwards"],
        backwards=run["backwards"],
        device=run["device"],
    )


def _integers(values: np.ndarray) -> str:
    """One string of numbers: a line of the file, where a list would be one line a number."""
    return " ".join(map(str, values.tolist()))


def _array(text: str) -> np.ndarray:
    return np.array([int(number) for number in text.split()], dtype=np.int64)
