"""Many trainings and attacks at once: in this process, on this machine, or on a Ray cluster."""

from multirobust.sweep.engine import Ended, Engine, LocalEngine, Session, Task
from multirobust.sweep.grid import Point, points_of
from multirobust.sweep.on_ray import RayEngine
from multirobust.sweep.parts import evaluating_on
from multirobust.sweep.trials import Sweep, SweepResult, Trial

__all__ = [
    "Ended",
    "Engine",
    "LocalEngine",
    "Point",
    "RayEngine",
    "Session",
    "Sweep",
    "SweepResult",
    "Task",
    "Trial",
    "evaluating_on",
    "points_of",
]
