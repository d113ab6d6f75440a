"""Mixed precision for training that changes weights between two forward passes of one step.

Imports Lightning Fabric, which takes seconds; `Runtime` imports this module when training starts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, final

import torch
from lightning_fabric.plugins import MixedPrecision

__all__ = ["BFloat16Mixed"]


@final
class BFloat16Mixed(MixedPrecision):
    """bfloat16 inside autocast, with two departures from Fabric's own.

    Images enter the model in float32: rounded to bfloat16, pixels near 1 would move by up to half a
    level of 255, and the model would train on other images than the attack made. And autocast keeps
    no copies of weights: a defense that steps its generator within one step would go on with the
    weights from before.

    Args:
        device: Kind of the device, "cpu" or "cuda".
    """

    def __init__(self, device: str):
        super().__init__("bf16-mixed", device)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        return torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=False)

    def convert_input(self, data: Any) -> Any:
        """Return the images as they are."""
        return data
