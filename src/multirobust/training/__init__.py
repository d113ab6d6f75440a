"""Training: one loop for all defenses, its checkpoints, its logs."""

from multirobust.training.checkpoint import load_checkpoint, save_checkpoint
from multirobust.training.interrupt import stop_on_interrupt
from multirobust.training.progress import (
    LiveDisplay,
    PlainDisplay,
    ProgressDisplay,
    Silent,
    Status,
    display_for,
)
from multirobust.training.runtime import Runtime, choose_device
from multirobust.training.schedule import (
    Cosine,
    Piecewise,
    Schedule,
    Triangular,
    schedule_of,
)
from multirobust.training.selection import Selected
from multirobust.training.starting import Start, read_start
from multirobust.training.team import together
from multirobust.training.trainer import Fit, fit
from multirobust.training.weights import WeightAverage

__all__ = [
    "Cosine",
    "Fit",
    "LiveDisplay",
    "Piecewise",
    "PlainDisplay",
    "ProgressDisplay",
    "Runtime",
    "Schedule",
    "Selected",
    "Silent",
    "Start",
    "Status",
    "Triangular",
    "WeightAverage",
    "choose_device",
    "display_for",
    "fit",
    "load_checkpoint",
    "read_start",
    "save_checkpoint",
    "schedule_of",
    "stop_on_interrupt",
    "together",
]
