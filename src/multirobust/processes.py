"""Whether this process was started as one of several: by `--devices`, by torchrun, or by SLURM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from multirobust.errors import InputError

__all__ = ["Launch", "launched"]


@final
@dataclass(frozen=True, kw_only=True)
class Launch:
    """How this process was started.

    Args:
        by: "torchrun", whose variables `--devices` sets too, or "slurm".
        rank: Its number, from 0 on.
        ranks: How many processes there are.
        local: How many of them run on one machine; the same number on each.
    """

    by: Literal["torchrun", "slurm"]
    rank: int
    ranks: int
    local: int

    @property
    def machines(self) -> int:
        """How many machines there are."""
        return self.ranks // self.local


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Return how this process was started with others, or None if it is alone.

    Raises:
        InputError: If the variables do not fit each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = {"rank": "RANK", "ranks": "WORLD_SIZE", "local": "LOCAL_WORLD_SIZE"}
        found = _numbers(environment, names)
        return Launch(by="torchrun", **found) if found["ranks"] > 1 else None
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        names = {"rank": "SLURM_PROCID", "ranks": "SLURM_NTASKS", "nodes": "SLURM_NNODES"}
        found = _numbers(environment, names)
        ranks, nodes = found["ranks"], found.pop("nodes")
        if ranks % nodes:
            raise InputError(
                f"SLURM: each machine must have the same number of tasks, got {ranks} tasks on "
                f"{nodes}; set --ntasks-per-node."
            )
        return Launch(by="slurm", local=ranks // nodes, **found) if ranks > 1 else None
    return None


def _numbers(environment: Mapping[str, str], names: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for field, name in names.items():
        text = environment.get(name, "")
        least = 0 if field == "rank" else 1
        if not text.isdecimal() or int(text) < least:
            raise InputError(
                f"The environment variable {name} must be a whole number from {least}, got "
                f"{text!r}; start with --devices, torchrun or srun, or unset RANK and WORLD_SIZE."
            )
        found[field] = int(text)
    return found
