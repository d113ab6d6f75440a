"""The decorators of compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["exact", "quick"]


def _compiled(**settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return Numba's decorator; without a folder that can be written, nothing is kept."""
    settings |= {"error_model": "numpy", "nogil": True}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(cache=True, **settings)(function)
        except RuntimeError:  # no locator: the package and the user's cache are read-only
            return njit(**settings)(function)

    return decorate


exact = _compiled()
"""As written."""

quick = _compiled(fastmath={"reassoc", "nsz", "nnan"})
"""Sums in any order, for numbers of which none is NaN."""
