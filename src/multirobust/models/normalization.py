"""Normalization inside the model, so that everything outside works on pixels in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from multirobust.errors import InputError
from multirobust.types import Images

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """(x - mean) / std for each channel. Both are buffers, and saved with the weights.

    Args:
        mean: One number for each channel, on the [0, 1] pixel scale.
        std: One positive number for each channel, on the same scale.

    Raises:
        InputError: If they differ in length, are empty or not finite, or if std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]):
        super().__init__()
        mean, std = [float(value) for value in mean], [float(value) for value in std]
        if not mean or len(mean) != len(std):
            raise InputError(
                "mean and std must hold one number for each channel, got "
                f"{len(mean)} and {len(std)} numbers; leave both out for no normalization."
            )
        if not all(
            math.isfinite(m) and math.isfinite(s) and s > 0 for m, s in zip(mean, std, strict=True)
        ):
            raise InputError(
                f"mean must be finite and std finite and positive, got mean={mean} and std={std}; "
                "compute them on pixels in [0, 1], and use 1 for a constant channel."
            )
        dtype = torch.get_default_dtype()
        self.register_buffer("mean", torch.tensor(mean, dtype=dtype).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=dtype).view(1, -1, 1, 1))

    def forward(self, x: Images) -> Images:
        """Return the normalized images (b, c, h, w)."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Show the numbers."""
        shown = ([round(v, 4) for v in t.flatten().tolist()] for t in (self.mean, self.std))
        return "mean={}, std={}".format(*shown)
