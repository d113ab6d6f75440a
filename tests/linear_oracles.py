"""A linear classifier whose worst case is known in closed form, and small networks to attack."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from multirobust.models import build
from multirobust.threats import Threat


class HalfSpace(nn.Module):
    """Logits (0, s, s - 1, ..., s - k + 2) with s = w.x + b.

    Whatever the number of classes, the cross-entropy rises with s for label 0 and falls with s for
    every other label. So the strongest attack maximizes a linear function over ball and box.
    """

    def __init__(self, weight: Tensor, bias: float = 0.0, classes: int = 2):
        super().__init__()
        self.weight = nn.Parameter(weight.flatten().clone())
        self.register_buffer("bias", torch.tensor(bias, dtype=weight.dtype))
        self.register_buffer("shift", torch.arange(classes - 1, dtype=weight.dtype))

    def score(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight + self.bias

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x)[:, None]
        return torch.cat((torch.zeros_like(score), score - self.shift), dim=1)

    def gain(self, x_adv: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return how far each image has moved s in the direction that raises its loss."""
        difference = (x_adv.double() - x.double()).flatten(1) @ self.weight.detach().double()
        return torch.where(y == 0, difference, -difference)

    def greatest_gain(self, threat: Threat, x: Tensor, y: Tensor) -> Tensor:
        """Return the greatest gain that any image within threat and box has, float64."""
        weight = self.weight.detach().double().numpy()
        pixels = x.flatten(1).double().numpy()
        gains = []
        for row, label in zip(pixels, y.tolist(), strict=True):
            slope = weight if label == 0 else -weight
            room = np.where(slope > 0, 1 - row, row)
            gains.append(_OPTIMA[threat.norm](np.abs(slope), room, threat.radius))
        return torch.tensor(gains, dtype=torch.float64)


def _linf_optimum(slope: np.ndarray, room: np.ndarray, radius: float) -> float:
    return float(slope @ np.minimum(room, radius))


def _l1_optimum(slope: np.ndarray, room: np.ndarray, radius: float) -> float:
    """Fill the steepest pixels first: a fractional knapsack."""
    order = np.argsort(-slope)
    before = np.cumsum(room[order]) - room[order]
    spent = np.clip(radius - before, 0, room[order])
    return float(slope[order] @ spent)


def _l2_optimum(slope: np.ndarray, room: np.ndarray, radius: float) -> float:
    """delta = min(t * slope, room) with the t, found by bisection, that spends the radius."""
    if np.linalg.norm(np.where(slope > 0, room, 0)) <= radius:
        return float(slope @ room)
    low, high = 0.0, 1.0
    while np.linalg.norm(np.minimum(high * slope, room)) < radius:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        inside = np.linalg.norm(np.minimum(middle * slope, room)) < radius
        low, high = (middle, high) if inside else (low, middle)
    return float(slope @ np.minimum(low * slope, room))


_OPTIMA = {"linf": _linf_optimum, "l2": _l2_optimum, "l1": _l1_optimum}


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform pixels of which a fifth lie exactly at 0 and a fifth exactly at 1."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=dtype) * 5 / 3 - 1 / 3).clamp(0, 1)


def network(channels: int = 3, *, seed: int = 0, classes: int = 4) -> nn.Module:
    """A small convolution-BatchNorm network with running statistics unlike those of any batch."""
    model = build("small_cnn", classes=classes, channels=channels, widths=(4, 6), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    return model
