"""A classifier of digits that needs no training, as a user's own file with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from multirobust.data import digits

__all__ = ["STEPS", "NearestMean", "write_model"]

SOURCE = '''\
import torch
from torch import nn


class NearestMean(nn.Module):
    """Logits fall with the squared distance to the mean image of each class."""

    def __init__(self, scale=1.0, probabilities=False):
        super().__init__()
        self.means = nn.Parameter(torch.zeros(10, 64))
        self.scale, self.probabilities = scale, probabilities

    def forward(self, x):
        x, means = x.flatten(1), self.means
        logits = self.scale * (2 * x @ means.T - means.square().sum(1))
        return logits.softmax(1) if self.probabilities else logits


def make(**options):
    return NearestMean(**options)
'''

STEPS = (
    *(f"evaluation.attack.{norm}.steps=4" for norm in ("linf", "l2", "l1")),
    "evaluation.attack.restarts=1",
)


class NearestMean(NamedTuple):
    """Where the model is.

    Args:
        spec: What `--model` takes.
        weights: What `--weights` takes.
    """

    spec: str
    weights: str


def write_model(folder: Path) -> NearestMean:
    """Write the file of the model, and the class means of the training images as its weights."""
    train = digits().train
    x = train.floats().flatten(1)
    means = torch.stack([x[train.labels == label].mean(0) for label in range(10)])
    (folder / "nearest.py").write_text(SOURCE, "utf-8")
    save_file({"means": means}, folder / "means.safetensors")
    return NearestMean(f"{folder / 'nearest.py'}:make", str(folder / "means.safetensors"))
