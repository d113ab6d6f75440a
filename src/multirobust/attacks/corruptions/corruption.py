"""The attack that corrupts images as CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C do."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import numpy as np
import torch
from torch import nn

from multirobust.attacks.base import Attack, check_batch
from multirobust.attacks.corruptions.operation import Operation
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Transformation
from multirobust.types import Images, Labels

__all__ = ["COMMON", "CORRUPTIONS", "EXTRA", "SEVERITIES", "Corruption"]

_KINDS: Mapping[str, dict[str, str]] = {
    "noise": {
        "gaussian_noise": "normal noise of one strength everywhere",
        "shot_noise": "Poisson noise, as of few photons",
        "impulse_noise": "salt and pepper in single channels",
    },
    "blur": {
        "defocus_blur": "a disk, as of a lens out of focus",
        "glass_blur": "pixels moved about at random, as through frosted glass",
        "motion_blur": "a trail in a random direction",
        "zoom_blur": "a mean over growing magnifications",
    },
    "weather": {
        "snow": "streaks of flakes, and the image whitened",
        "frost": "ice crystals in front of the image; see the option frost_images",
        "fog": "a bright fractal cloud",
        "brightness": "a constant added to the value (HSV)",
    },
    "digital": {
        "contrast": "all pixels drawn toward the mean of their channel",
        "elastic_transform": "a random affine map, then small random displacements",
        "pixelate": "shrunk and enlarged in blocks",
        "jpeg_compression": "JPEG of low quality",
    },
    "extra": {
        "speckle_noise": "normal noise in proportion to the pixel",
        "gaussian_blur": "a normal blur",
        "spatter": "drops of water or mud on the lens",
        "saturate": "saturation (HSV) lowered or raised; gray images stay as they are",
    },
}
CORRUPTIONS: Mapping[str, str] = MappingProxyType(
    {name: line for kind in _KINDS.values() for name, line in kind.items()}
)
"""Every corruption with one line on what it is, in the published order: 15 and 4 extra ones."""
EXTRA: tuple[str, ...] = tuple(_KINDS["extra"])
"""The four that the authors held out, for validation of what was designed on the others."""
COMMON: tuple[str, ...] = tuple(name for name in CORRUPTIONS if name not in EXTRA)
"""The fifteen over which mean corruption accuracies and errors are published."""
SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)

_SMALLEST = 4
_PROCEDURAL = "procedural"


@final
@dataclass(frozen=True)
class Corruption(Attack):
    """A common corruption of each image at one severity. The model is not asked.

    Images are rounded to uint8, corrupted one by one and stored as uint8, as the published files
    are: pixels are multiples of 1/255. The settings are the published ones of the nearest size: up
    to 45 pixels (longer side) those of CIFAR-10-C, up to 119 of Tiny-ImageNet-C, above of
    ImageNet-C. Each image has random numbers of its own, so that an image comes out the same
    whatever follows it in the batch.

    Frost blends in photographs of ice that are not part of this package. Without them an ice
    texture is computed; results with it are not comparable to published numbers of "frost".

    Args:
        name: A key of `CORRUPTIONS`.
        severity: 1 to 5.
        frost_images: For "frost" only: the folder of the published photographs frost1.png,
            frost2.png, frost3.png, frost4.jpg and frost5.jpg, or "procedural" (also None) for the
            computed texture.

    Raises:
        InputError: If the name is unknown, the severity is not in 1..5, or frost_images is given
            for another corruption.

    References: Hendrycks and Dietterich, Benchmarking neural network robustness to common
    corruptions and perturbations, ICLR 2019.
    """

    name: str
    severity: int
    frost_images: str | None = None

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise lookup_error("corruption", self.name, CORRUPTIONS)
        if isinstance(self.severity, bool) or self.severity not in SEVERITIES:
            raise InputError(
                f"Corruption: severity must be 1, 2, 3, 4 or 5, got {self.severity!r}; leave the "
                "attack out for clean images."
            )
        if self.name == "frost":
            object.__setattr__(self, "frost_images", self.frost_images or _PROCEDURAL)
        elif self.frost_images is not None:
            raise InputError(
                f"Corruption: frost_images belongs to 'frost', got {self.frost_images!r} for "
                f"{self.name!r}; leave it out."
            )

    @property
    def threats(self) -> tuple[Transformation, ...]:
        """The transformation of this name, whose radius is the severity."""
        return (Transformation(self.name, float(self.severity)),)

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`. The images are computed on the CPU.

        Raises:
            InputError: If images have neither 1 nor 3 channels or a side below 4 pixels, or an
                optional dependency is missing.
            DataError: If a photograph of frost_images is missing or too small.
        """
        check_batch(x, y)
        _check_shape(x)
        operation = _operation(self.name)
        options = {"source": self.frost_images} if self.name == "frost" else {}
        pixels = x.detach().float().mul(255).round().to(torch.uint8)
        arrays = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        corrupted = np.stack(
            [
                operation(image, self.severity, np.random.default_rng(seed), **options)
                for image, seed in zip(arrays, _seeds(x, generator), strict=True)
            ]
        )
        stored = torch.from_numpy(corrupted).to(x.device).permute(0, 3, 1, 2)
        return stored.to(x.dtype, memory_format=torch.contiguous_format).div_(255)


def _seeds(x: Images, generator: torch.Generator | None) -> list[int]:
    """Return one seed for each image."""
    if generator is None:
        generator = torch.Generator(x.device).manual_seed(0)
    drawn = torch.randint(2**63 - 1, (len(x),), generator=generator, device=generator.device)
    return drawn.tolist()


def _check_shape(x: Images) -> None:
    channels, height, width = x.shape[1:]
    if channels not in (1, 3) or min(height, width) < _SMALLEST:
        raise InputError(
            "Corruption: images must have 1 (gray) or 3 (RGB) channels and sides of at least "
            f"{_SMALLEST} pixels, got shape {tuple(x.shape)}; convert the images."
        )


def _operation(name: str) -> Operation:
    """Return the operation, importing its module, and so the optional dependencies, only now."""
    kind = next(kind for kind, names in _KINDS.items() if name in names)
    try:
        module = importlib.import_module(f"multirobust.attacks.corruptions.{kind}")
    except ImportError as error:
        raise InputError(
            f"Corruption: {name!r} needs scikit-image, SciPy and Pillow, and {error.name!r} is "
            "missing; run: pip install 'multirobust[corruptions]'"
        ) from error
    return module.OPERATIONS[name]
