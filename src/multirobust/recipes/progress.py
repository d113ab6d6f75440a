"""How a reproduction reports what it does, and how it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from multirobust.training import ProgressDisplay

__all__ = ["Progress"]


@final
@dataclass(frozen=True)
class Progress:
    """Where lines go, who shows a training, and who may stop it.

    Args:
        display: Makes the display of a training.
        stop: Asked after every training step; when true, the run is saved and `Interrupted` raised.
        tell: Receives a line for each run and each attack that is done.
    """

    display: Callable[[], ProgressDisplay | None] = lambda: None
    stop: Callable[[], bool] = lambda: False
    tell: Callable[[str], None] = lambda line: None
