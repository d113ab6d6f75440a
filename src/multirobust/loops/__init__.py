"""Loops over images on a CPU, compiled by Numba on first use and kept on disk from then on.

One image after the other, in memory that stays in the processor's cache. `threats.native` calls
them. Sums are float64, in the order that the processor's vectors make quickest.
"""

from __future__ import annotations

from multirobust.loops.choosing import differing_rows, sparse_move_rows, sparse_rows
from multirobust.loops.hashing import splitmix_rows
from multirobust.loops.projecting import clip_rows, project_rows

__all__ = [
    "clip_rows",
    "differing_rows",
    "project_rows",
    "sparse_move_rows",
    "sparse_rows",
    "splitmix_rows",
]
