"""JPEG: a perturbation of the coefficients that a JPEG file stores, bounded in linf, l2 or l1."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from multirobust.attacks.parametric import Parameters
from multirobust.attacks.unforeseen.base import Unforeseen, check_channels, uniform
from multirobust.ranks import drawn
from multirobust.types import Images

__all__ = ["JPEGL1", "JPEGL2", "JPEGLinf"]

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
"""The quantization tables of quality 50 (ITU-T T.81, annex K), on the 0..255 scale."""

_LARGEST = 2.0
"""Of any one coefficient, in l2 and l1."""

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
"""Share in the luminance (JFIF)."""


@dataclass(frozen=True, kw_only=True)
class _JPEG(Unforeseen, abc.ABC):
    """A perturbation of the DCT coefficients of 8 x 8 blocks.

    The image becomes luminance and two chroma channels, these at half the resolution (4:2:0). A
    coefficient of 1 is half a quantization step of quality 50: what rounding can change at most.
    Nothing is rounded, so a zero perturbation gives the image with averaged chroma; a gray image is
    its own luminance and comes back as it is. Since all of this is linear, the inverse DCT of the
    perturbation is added to the channels, and no forward DCT is needed.

    Sides that are no multiple of the block (16 pixels, 8 for gray images) are extended by their
    last pixels and cropped again.
    """

    @property
    def step_size(self) -> float:
        """In the norm of the radius."""
        return self.radius / math.sqrt(self.steps)

    @abc.abstractmethod
    def sample(self, x: Images, size: int, generator: torch.Generator) -> Tensor:
        """Return random coefficients (b, size) within the radius."""

    def start(self, x: Images, generator: torch.Generator) -> Parameters:
        """Return random coefficients (b, n): blocks of the luminance, then of each chroma."""
        check_channels(x, type(self).__name__)
        size = sum(h * w for h, w in _layout(x))
        return {"coefficients": self.sample(x, size, generator)}

    def render(self, x: Images, parameters: Parameters) -> Images:
        """Return the images that a decoder makes of the perturbed coefficients."""
        layout, (height, width) = _layout(x), x.shape[2:]
        parts = parameters["coefficients"].split([h * w for h, w in layout], dim=1)
        tables = (_LUMINANCE, _CHROMINANCE, _CHROMINANCE)
        moved = [
            _from_blocks(part, table, shape)
            for part, table, shape in zip(parts, tables, layout, strict=False)
        ]
        if x.shape[1] == 1:
            return (x + moved[0][:, None, :height, :width]).clamp(0, 1)
        (h, w), (to_jpeg, to_rgb) = layout[0], _color_matrices(x)
        padded = F.pad(x, (0, w - width, 0, h - height), mode="replicate")
        luma, chroma = torch.einsum("ij,bjhw->bihw", to_jpeg, padded).split([1, 2], dim=1)
        luma = luma + moved[0][:, None]
        chroma = F.avg_pool2d(chroma, 2) + torch.stack(moved[1:], dim=1)
        chroma = chroma.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        decoded = torch.einsum("ij,bjhw->bihw", to_rgb, torch.cat([luma, chroma], dim=1))
        return decoded[:, :, :height, :width].clamp(0, 1)


@final
@dataclass(frozen=True, kw_only=True)
class JPEGLinf(_JPEG):
    """JPEG coefficients bounded in linf: steps by the sign of the gradient.

    Args:
        radius: Largest change of a coefficient, in half quantization steps of quality 50.
        steps: Number of steps, at least 1.
        objective: The loss to raise.

    References: Kang et al., 2019, with the radii calibrated for CIFAR-10.
    """

    name: ClassVar[str] = "jpeg_linf"
    severities: ClassVar[tuple[float, ...]] = (0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0)

    def sample(self, x: Images, size: int, generator: torch.Generator) -> Tensor:
        """Return coefficients uniform in the ball."""
        return (2 * uniform(x, (size,), generator) - 1) * self.radius

    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Return the coefficients after a step."""
        moved = parameters["coefficients"] + self.step_size * gradients["coefficients"].sign()
        return {"coefficients": moved.clamp(-self.radius, self.radius)}


@final
@dataclass(frozen=True, kw_only=True)
class JPEGL2(_JPEG):
    """JPEG coefficients bounded in l2: steps along the gradient. No coefficient exceeds 2.

    Args:
        radius: l2 norm of the change, in half quantization steps of quality 50.
        steps: Number of steps, at least 1.
        objective: The loss to raise.

    References: Kang et al., 2019, with the radii calibrated for CIFAR-10.
    """

    name: ClassVar[str] = "jpeg_l2"
    severities: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

    def sample(self, x: Images, size: int, generator: torch.Generator) -> Tensor:
        """Return coefficients uniform in the ball, then cut at 2."""
        options = {"dtype": x.dtype, "device": x.device}
        normal = drawn(torch.randn, (len(x), size), generator=generator, **options)
        length = self.radius * uniform(x, (1,), generator) ** (1 / size)
        return (_unit(normal) * length).clamp(-_LARGEST, _LARGEST)

    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Return the coefficients after a step, scaled back to the radius if beyond it."""
        moved = parameters["coefficients"] + self.step_size * _unit(gradients["coefficients"])
        scaled = moved * (self.radius / _length(moved)).clamp(max=1)
        return {"coefficients": scaled.clamp(-_LARGEST, _LARGEST)}


@final
@dataclass(frozen=True, kw_only=True)
class JPEGL1(_JPEG):
    """JPEG coefficients bounded in l1: Frank-Wolfe. No coefficient exceeds 2.

    Each step moves a share 1 / (step + 1) of the way to the point of the ball that gains most to
    first order, so an iterate is the mean of those points and the start only sets the first.

    Args:
        radius: l1 norm of the change, in half quantization steps of quality 50.
        steps: Number of steps, at least 1.
        objective: The loss to raise.

    References: Kang et al., 2019, with the radii calibrated for CIFAR-10; Frank and Wolfe, 1956.
    """

    name: ClassVar[str] = "jpeg_l1"
    severities: ClassVar[tuple[float, ...]] = (2.0, 8.0, 64.0, 256.0, 512.0, 1024.0)

    def sample(self, x: Images, size: int, generator: torch.Generator) -> Tensor:
        """Return coefficients uniform in the ball, then cut at 2."""
        exponential = -torch.log1p(-uniform(x, (size + 1,), generator))
        sign = (uniform(x, (size,), generator) - 0.5).sign()
        share = exponential[:, :-1] / exponential.sum(1, keepdim=True)
        return (sign * share * self.radius).clamp(-_LARGEST, _LARGEST)

    def ascend(self, parameters: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Return the coefficients after a step toward the best point of the ball."""
        now, gradient = parameters["coefficients"], gradients["coefficients"]
        count = min(math.ceil(self.radius / _LARGEST), now.shape[1])
        left = self.radius - _LARGEST * torch.arange(count).to(now)
        top = gradient.abs().topk(count, dim=1).indices
        sizes = torch.zeros_like(now).scatter(1, top, left.clamp(max=_LARGEST).expand_as(top))
        return {"coefficients": now + (sizes * gradient.sign() - now) / (step + 1)}


def _length(rows: Tensor) -> Tensor:
    """Return the l2 norm of each row as (b, 1), summed in float64; 1 for a row of zeros."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64).to(rows)
    return torch.where(length > 0, length, 1)


def _unit(rows: Tensor) -> Tensor:
    """Return each row at length 1, or zero."""
    return rows / _length(rows)


def _layout(x: Images) -> list[tuple[int, int]]:
    """Return height and width of the coded channels: the luminance, and for color two chroma."""
    block = 8 if x.shape[1] == 1 else 16
    h, w = (math.ceil(side / block) * block for side in x.shape[2:])
    return [(h, w)] if block == 8 else [(h, w), (h // 2, w // 2), (h // 2, w // 2)]


def _from_blocks(
    coefficients: Tensor, table: tuple[tuple[int, ...], ...], shape: tuple[int, int]
) -> Tensor:
    """Return what the coefficients (b, h * w), block by block, add to a channel (b, h, w)."""
    h, w = shape
    step = torch.tensor(table).to(coefficients) / 255
    blocks = coefficients.reshape(-1, h // 8, w // 8, 8, 8) * step / 2
    basis = _dct_basis(coefficients)
    pixels = basis.T @ blocks @ basis
    return pixels.transpose(2, 3).reshape(-1, h, w)


def _dct_basis(like: Tensor) -> Tensor:
    """Return the orthonormal DCT-II of eight samples, (8, 8): frequency by sample."""
    frequency, sample = torch.arange(8.0)[:, None], torch.arange(8.0)
    basis = torch.cos((2 * sample + 1).double() * frequency * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis.to(like)


def _color_matrices(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices from RGB to luminance and two chroma (around 0), and back."""
    luma = torch.tensor([_RED, _GREEN, _BLUE], dtype=torch.float64)
    red, _, blue = torch.eye(3, dtype=torch.float64)
    chroma_blue = (blue - luma) / (2 * (1 - _BLUE))
    chroma_red = (red - luma) / (2 * (1 - _RED))
    to_jpeg = torch.stack([luma, chroma_blue, chroma_red])
    return to_jpeg.to(like), torch.linalg.inv(to_jpeg).to(like)
