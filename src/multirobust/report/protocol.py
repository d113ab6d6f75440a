"""What the report says of how the numbers were made: attacks, and the facts of each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from multirobust.report.headline import SYMBOLS
from multirobust.report.tables import RunResult, duration

__all__ = ["UsedAttack", "attacks_of", "facts_of"]

LOCAL = "recipe.data.folder"
"""Where the data lay on the machine that trained: it says nothing to anyone else."""


class UsedAttack(NamedTuple):
    """An attack of the evaluation, in words."""

    name: str
    threat: str
    radius: str
    settings: str
    passes: str


def attacks_of(results: Sequence[RunResult]) -> Iterator[UsedAttack]:
    """Yield every attack once, whatever number of runs it was used on."""
    seen = set()
    for column in (column for run in results for column in run.outcomes.columns):
        attack = UsedAttack(
            column.name,
            SYMBOLS.get(column.threat, column.threat),
            f"{column.radius:.4g} = {255 * column.radius:.4g}/255",
            column.settings or "not recorded",
            f"{column.forwards:.4g} forward, {column.backwards:.4g} backward",
        )
        if attack[:-1] not in seen:
            seen.add(attack[:-1])
            yield attack


def facts_of(run: RunResult) -> Iterator[tuple[str, str]]:
    """Yield what is known about a run, as pairs of a name and a value."""
    yield "images", f"{len(run.outcomes):,}"
    yield "training device", run.device
    if run.training_seconds is not None:
        yield "training time", duration(run.training_seconds)
    if run.forwards is not None and run.backwards is not None:
        yield "training passes", f"{run.forwards:,.0f} forward, {run.backwards:,.0f} backward"
    attacking = sum(column.seconds for column in run.outcomes.columns)
    if attacking:
        yield "attack time", duration(attacking)
    yield from (fact for fact in _flat("", run.outcomes.manifest) if fact[0] != LOCAL)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, (list, tuple)) and not any(
        isinstance(v, (Mapping, list)) for v in value
    ):
        yield prefix, ", ".join(map(str, value))
    else:
        yield prefix, str(value)
