"""The network that turns Gaussian noise into the noise of the augmented images (Eq. 6)."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multirobust.errors import InputError, lookup_error
from multirobust.models.base import check_count
from multirobust.ranks import drawn
from multirobust.types import Images

__all__ = ["Conditioning", "NoiseGenerator"]

Conditioning: TypeAlias = Literal["noise", "noise_and_image"]


@final
class NoiseGenerator(nn.Module):
    """Four convolutions of Gaussian noise z, plus z itself, cropped to the size of the image.

    The 3x3 convolution has no padding: z is one pixel larger than the image on every side. With 3
    channels and width 20 it has 4,183 parameters, or 4,243 when it sees the image. A generator of
    greater depth has more 3x3 convolutions, each of which asks for one more pixel.

    Args:
        channels: Number of channels of the images.
        conditioning: "noise" is the published network, whose output does not depend on the image;
            "noise_and_image" is the paper's g(z, x): the image, reflected at its edges, enters the
            first convolution beside z.
        width: Channels of the hidden layers.
        depth: Number of 3x3 convolutions; the published network has one.
        seed: Decides the weights; the global random state is neither read nor changed.

    Raises:
        InputError: If a count is not a positive integer, or the conditioning is unknown.

    References: Rusak et al., A simple way to make neural networks robust against diverse image
    corruptions, ECCV 2020 (the 3x3 network); Madaan, Shin and Hwang, ICML 2021.
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        conditioning: Conditioning | str = "noise_and_image",
        width: int = 20,
        depth: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        check_count("channels", channels, 1, "it is 1 for gray images and 3 for color")
        check_count("width", width, 1, "the published network has 20")
        check_count("depth", depth, 1, "the published network has one 3x3 convolution")
        check_count("seed", seed, 0, "each seed draws other weights")
        if conditioning not in get_args(Conditioning):
            raise lookup_error("conditioning", conditioning, get_args(Conditioning))
        self.channels = channels
        self.conditioning = conditioning
        self.margin = depth
        inputs = channels if conditioning == "noise" else 2 * channels
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            neighbors = [(nn.Conv2d(width, width, 3), nn.LeakyReLU()) for _ in range(depth)]
            self.layers = nn.Sequential(
                nn.Conv2d(inputs, width, 1),
                nn.LeakyReLU(),
                *(layer for pair in neighbors for layer in pair),
                nn.Conv2d(width, width, 1),
                nn.LeakyReLU(),
                nn.Conv2d(width, channels, 1),
            )
        _initialize(self.layers, torch.Generator().manual_seed(seed))

    def draw(self, x: Images, generator: torch.Generator | None = None) -> Tensor:
        """Return standard normal noise z (b, c, h + 2 depth, w + 2 depth), as x in all else.

        Args:
            x: Images (b, c, h, w); only shape, dtype and device are read.
            generator: On the device of x; without one, a fresh one with seed 0.
        """
        b, c, h, w = x.shape
        size = (b, c, h + 2 * self.margin, w + 2 * self.margin)
        generator = generator or torch.Generator(x.device).manual_seed(0)
        options = {"generator": generator, "dtype": x.dtype, "device": x.device}
        return drawn(torch.randn, size, **options)

    def forward(self, z: Tensor, x: Tensor) -> Images:
        """Return the noise (b, c, h, w) to add to images x, not yet projected.

        Args:
            z: What `draw` returned for x.
            x: Images (b, c, h, w) in [0, 1].

        Raises:
            InputError: If z or x has the wrong shape, or x is too small to be reflected.
        """
        self._check(z, x)
        margin = self.margin
        if self.conditioning == "noise":
            inputs = z
        else:
            inputs = torch.cat([z, F.pad(x, (margin,) * 4, mode="reflect")], dim=1)
        return self.layers(inputs) + z[:, :, margin:-margin, margin:-margin]

    def extra_repr(self) -> str:
        """Show what decides its input."""
        return f"channels={self.channels}, conditioning={self.conditioning!r}"

    def _check(self, z: Tensor, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InputError(
                f"x must be images of shape (b, {self.channels}, h, w) for this generator, got "
                f"{tuple(x.shape)}; give NoiseGenerator the channels of the data."
            )
        b, c, h, w = x.shape
        size = (b, c, h + 2 * self.margin, w + 2 * self.margin)
        if z.shape != size:
            raise InputError(
                f"z must have shape {size} for images of shape {tuple(x.shape)}, "
                f"got {tuple(z.shape)}; use z = generator.draw(x)."
            )
        if self.conditioning == "noise_and_image" and min(h, w) <= self.margin:
            raise InputError(
                f"x must be at least {self.margin + 1} pixels high and wide, so that its edges can "
                f"be reflected, got {h} x {w}; use conditioning='noise' or a smaller depth."
            )


@torch.no_grad()
def _initialize(layers: nn.Sequential, generator: torch.Generator) -> None:
    """Draw weights from normal(0, sqrt(2 / n)), n = k * k * outputs, as published; no bias."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            n = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / n), generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
