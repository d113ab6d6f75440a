"""The configuration of the one training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from multirobust.config.section import Count, NonNegative, Positive, Section

__all__ = ["TrainingConfig"]


class TrainingConfig(Section):
    """The one loop.

    Args:
        epochs: Passes over the training set.
        batch_size: Images a step; at least 2.
        peak_lr: Top of the triangular schedule.
        peak_at: Where the top lies, as a share of all steps.
        momentum: Of SGD.
        weight_decay: Of SGD, on every parameter.
        device: "auto", "cpu" or "cuda".
        precision: Fabric's name: "32-true", "bf16-mixed" or "64-true".
        checkpoint_seconds: Save at least this often, besides at the end of every epoch.
        log_steps: Steps between two lines of metrics.
    """

    epochs: Count = 30
    batch_size: Annotated[int, Field(ge=2, strict=True)] = 128
    peak_lr: Positive = 0.21
    peak_at: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.4
    momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.9
    weight_decay: NonNegative = 5e-4
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    checkpoint_seconds: NonNegative = 300.0
    log_steps: Count = 50
