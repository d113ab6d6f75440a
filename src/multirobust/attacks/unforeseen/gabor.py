"""Gabor: procedural noise of Gabor kernels at sparse places, with adversarial weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from multirobust.attacks.parametric import Parameters
from multirobust.attacks.unforeseen.base import STEP_LENGTH, Unforeseen, uniform
from multirobust.types import Images

__all__ = ["Gabor"]

_DENSITY = 1 / 14
"""Share of the pixels that a kernel is centered at."""

_SIDE = 23
"""Of a kernel, in pixels."""

_MOST_ANGLES = 10
_SOFTNESS = 0.001
"""Of the step to which the noise is sharpened, relative to its greatest deviation from the mean."""


@final
@dataclass(frozen=True, kw_only=True)
class Gabor(Unforeseen):
    """Gabor noise: a kernel at each of a few random pixels, with weights in [-1, 1].

    The kernel of an image is a sum of 1 to 10 Gabor functions of random frequency, width and
    angle. The noise is sharpened to almost two values and scaled to [0, 1]; the statistics that do
    so are constants to the gradient, as in the published code: with them, only pixels next to a
    jump would count. The noise is the same in all channels and only brightens.

    The published code moves the weights of all pixels but the drawn ones; we take that for a slip
    (the later code of its authors moves the drawn ones) and keep the noise sparse.

    Args:
        radius: Height of the noise, on the [0, 1] pixel scale; it may exceed 1.
        steps: Number of steps, at least 1.
        objective: The loss to raise.

    References: Kang et al., 2019, after Co, Muñoz-González, de Maupeou and Lupu, Procedural noise
    adversarial examples for black-box attacks on deep convolutional networks, CCS 2019. The radii
    are calibrated for ImageNet-100 (224 x 224); there are none for CIFAR-10.
    """

    name: ClassVar[str] = "gabor"
    severities: ClassVar[tuple[float, ...]] = tuple(
        pixels / 255 for pixels in (6.25, 12.5, 25, 400, 800, 1600)
    )

    @property
    def step_size(self) -> float:
        """On the scale [-1, 1] of the weights."""
        return STEP_LENGTH / math.sqrt(self.steps)

    def start(self, x: Images, generator: torch.Generator) -> Parameters:
        """Return "weights" (b, 1, h, w), zero but at a few pixels, "places" and "kernels".

        The places (b, 1, h, w), 1 at those pixels, and the kernels (b, 1, 23, 23) stay as they are.
        """
        h, w = x.shape[2:]
        count = max(round(_DENSITY * h * w), 1)
        chosen = uniform(x, (h * w,), generator).topk(count, dim=1).indices
        places = x.new_zeros(len(x), h * w).scatter(1, chosen, 1).reshape(-1, 1, h, w)
        weights = (2 * uniform(x, (1, h, w), generator) - 1) * places
        return {"weights": weights, "places": places, "kernels": _kernels(x, generator)}

    def render(self, x: Images, parameters: Parameters) -> Images:
        """Return the images with the noise on top."""
        noise = _noise(parameters["weights"], parameters["kernels"].detach())
        gain, shift = _sharpening(noise.detach())
        return (x + self.radius * (gain * noise + shift)).clamp(0, 1)

    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Return the weights after a step by the sign of the gradient, within [-1, 1]."""
        moved = parameters["weights"] + self.step_size * gradients["weights"].sign()
        return {**parameters, "weights": moved.clamp(-1, 1) * parameters["places"]}


def _noise(weights: Tensor, kernels: Tensor) -> Tensor:
    """Return the weights (b, 1, h, w) spread by the kernel of each image; outside is zero."""
    h, w = weights.shape[2:]
    shape = (h + _SIDE - 1, w + _SIDE - 1)
    product = torch.fft.rfft2(weights, shape) * torch.fft.rfft2(kernels, shape)
    middle = _SIDE // 2
    return torch.fft.irfft2(product, shape)[:, :, middle : middle + h, middle : middle + w]


def _sharpening(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gain and the shift that sharpen the noise and scale it to [0, 1], like the noise.

    With c the deviation from the mean as a share of the greatest, the gain is (1 + s) / (c + s).
    Noise that is constant becomes zero.
    """
    mean = noise.mean((2, 3), keepdim=True)
    deviation = noise - mean
    greatest = deviation.abs().amax((2, 3), keepdim=True)
    share = deviation.abs() / torch.where(greatest > 0, greatest, 1)
    gain = (1 + _SOFTNESS) / (share + _SOFTNESS)
    sharp = mean + gain * deviation
    low, high = sharp.amin((2, 3), keepdim=True), sharp.amax((2, 3), keepdim=True)
    span = high - low
    scale = (span > 0).to(span) / torch.where(span > 0, span, 1)
    return gain * scale, (mean * (1 - gain) - low) * scale


def _kernels(x: Images, generator: torch.Generator) -> Tensor:
    """Draw the kernel of each image, (b, 1, 23, 23)."""
    draws = uniform(x, (4, 1, 1, 1), generator)
    count = 1 + (draws[:, 0] * _MOST_ANGLES).floor()
    width = 0.101 + 0.3 * draws[:, 1]
    frequency = 3 + (_SIDE / 4 - 3) * draws[:, 2]
    index = torch.arange(_MOST_ANGLES).to(x)[:, None, None]
    angle = math.pi * (draws[:, 3] + index / count)
    axis = torch.linspace(-0.5, 0.5, _SIDE).to(x)
    y, z = axis[:, None], axis
    wave = torch.cos(2 * math.pi * frequency * (z * angle.cos() + y * angle.sin()))
    bell = torch.exp(-(y.square() + z.square()) / (2 * width.square()))
    return (bell * wave * (index < count).to(x)).sum(1, keepdim=True)
