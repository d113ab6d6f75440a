"""What hypothesis draws for the geometry: threats, and pairs of an image and a displaced image."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from multirobust.threats import L1, L2, Linf

__all__ = ["pairs", "threats"]

KINDS = (Linf, L2, L1)

threats = st.builds(
    lambda kind, exponent: kind(10.0 ** (exponent if kind is not Linf else min(exponent, 0.0))),
    st.sampled_from(KINDS),
    st.floats(-4, 1),
)
"""Radii over five decades, 1e-4 to 10, or in linf, where there is none above 1, to 1."""


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw (x_adv, x): x in [0, 1], often on its border; displacements of 0 to 1e6, or decades."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from((1, 3))),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
    )
    x = torch.rand(shape, generator=generator)
    if draw(st.booleans()):
        x = (2 * x - 0.5).clamp(0, 1)
    if draw(st.booleans()):
        x = x * 10 ** (-8 * torch.rand(shape, generator=generator))
    scale = draw(st.sampled_from((0.0, 1e-6, 1e-3, 0.1, 1.0, 10.0, 1e6)))
    w = scale * torch.randn(shape, generator=generator)
    if draw(st.booleans()):
        w = w * 10 ** (-6 * torch.rand(shape, generator=generator))
    if draw(st.booleans()):
        w = w * (torch.rand(shape, generator=generator) < 0.3)
    return x + w, x
