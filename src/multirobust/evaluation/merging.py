"""The shards of one evaluation, joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multirobust.errors import InputError
from multirobust.evaluation.blocks import Shard
from multirobust.evaluation.outcomes import AttackColumn, Outcomes

__all__ = ["merge"]

_OWN = ("shard", "errors", "audit", "time", "device", "seconds", "evaluation", "command")
"""Manifest entries in which the shards of one evaluation may differ."""


def merge(shards: Sequence[Outcomes]) -> Outcomes:
    """Return the outcomes of an evaluation from those of all its shards, in any order.

    Seconds add up; passes for each image are averaged over the images.

    Args:
        shards: What `evaluate_suite` gave for each shard of one evaluation.

    Raises:
        InputError: If a shard is missing or there twice, or they are not of one evaluation: other
            weights, images, attacks, seeds or versions. The message names the difference.
    """
    if not shards:
        raise InputError("merge: needs the shards of an evaluation, got none.")
    _check_complete(shards)
    for other in shards[1:]:
        _check_same(shards[0], other)
    order = np.argsort(np.concatenate([shard.index for shard in shards]))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(shard, name) for shard in shards])[order]

    columns = tuple(
        _joined_column(columns, [len(shard) for shard in shards], order)
        for columns in zip(*(shard.columns for shard in shards), strict=True)
    )
    return Outcomes(
        index=joined("index"),
        labels=joined("labels"),
        predictions=joined("predictions"),
        columns=columns,
        manifest=_joined_manifest([shard.manifest for shard in shards]),
    )


def _joined_column(
    columns: Sequence[AttackColumn], sizes: Sequence[int], order: np.ndarray
) -> AttackColumn:
    total = sum(sizes)

    def mean(name: str) -> float:
        return sum(getattr(c, name) * n for c, n in zip(columns, sizes, strict=True)) / total

    return replace(
        columns[0],
        states=np.concatenate([column.states for column in columns])[order],
        distances=np.concatenate([column.distances for column in columns])[order],
        seconds=sum(column.seconds for column in columns),
        forwards=mean("forwards"),
        backwards=mean("backwards"),
    )


def _joined_manifest(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    errors: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, lines in manifest.get("errors", {}).items():
            errors.setdefault(name, set()).update(lines)
    findings = {
        (found["code"], found["message"]): found
        for manifest in manifests
        for found in manifest.get("audit", [])
    }
    devices = sorted({str(manifest.get("device")) for manifest in manifests})
    merged = dict(manifests[0])
    if isinstance(merged.get("evaluation"), dict):
        merged["evaluation"] = {k: v for k, v in merged["evaluation"].items() if k != "shard"}
    return merged | {
        "shard": "1/1",
        "merged_from": len(manifests),
        "errors": {name: sorted(lines) for name, lines in errors.items()},
        "audit": list(findings.values()),
        "device": ", ".join(devices),
    }


def _check_complete(shards: Sequence[Outcomes]) -> None:
    parts = [Shard.parse(str(shard.manifest.get("shard", "1/1"))) for shard in shards]
    of = parts[0].of
    if any(part.of != of for part in parts):
        told = ", ".join(map(str, parts))
        raise InputError(f"merge: all must be shards of one number, got {told}.")
    there = sorted(part.part for part in parts)
    if there != list(range(1, of + 1)):
        missing = sorted(set(range(1, of + 1)) - set(there))
        twice = sorted({part for part in there if there.count(part) > 1})
        raise InputError(
            f"merge: needs each of the {of} shards once; missing: {missing or 'none'}, there more "
            f"than once: {twice or 'none'}."
        )


def _check_same(first: Outcomes, other: Outcomes) -> None:
    name = f"shard {other.manifest.get('shard')}"
    for key in sorted((first.manifest.keys() | other.manifest.keys()) - set(_OWN)):
        a, b = first.manifest.get(key), other.manifest.get(key)
        if a != b:
            raise InputError(
                f"merge: {name} is not of the same evaluation: its {key} is {_short(b)}, where "
                f"that of shard {first.manifest.get('shard')} is {_short(a)}."
            )
    a, b = ([(c.name, c.threat, c.radius, c.settings) for c in o.columns] for o in (first, other))
    if a != b:
        raise InputError(f"merge: {name} was attacked differently: {_short(b)}, not {_short(a)}.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
