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
from multirobust.training.schedule import Triangular
from multirobust.training.trainer import Fit, fit

__all__ = [
    "Fit",
    "LiveDisplay",
    "PlainDisplay",
    "ProgressDisplay",
    "Runtime",
    "Silent",
    "Status",
    "Triangular",
    "choose_device",
    "display_for",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
    "stop_on_interrupt",
]
