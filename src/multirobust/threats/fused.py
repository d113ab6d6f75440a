"""The l2 and l1 projections as one kernel on a CUDA device, where nobody wants a derivative.

An attack step projects as often as it passes the network. Written in PyTorch a projection is some
hundred small kernels; here one program holds one image in its registers and solves for its unknown,
a search that ends when the image is done. All sums are float64.

Written in Triton, which PyTorch brings with its CUDA builds; without it, `is_fusible` is false.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

__all__ = ["fused_projection", "is_fusible"]

_MOST_PIXELS = 16384
"""Values of an image that the registers of one program hold: 64 x 64 pixels in three colors."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def is_fusible(x_adv: Tensor, x: Tensor) -> bool:
    """Tell whether the kernel serves these images (b, n): on CUDA, float32, without derivatives."""
    if not _HAS_TRITON or torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return False
    if torch.compiler.is_compiling() or not 0 < x.shape[1] <= _MOST_PIXELS or not len(x):
        return False
    return all(
        type(tensor) is Tensor
        and tensor.device.type == "cuda"
        and tensor.dtype == torch.float32
        and not is_functorch_wrapped_tensor(tensor)
        for tensor in (x_adv, x)
    )


def fused_projection(
    x_adv: Tensor, x: Tensor, r: Tensor, *, norm: str, inside: float, farthest: float
) -> Tensor:
    """Return the closest points to x_adv within r of x in the norm and in [0, 1].

    Args:
        x_adv: Rows of any values, (b, n), float32.
        x: Rows in [0, 1], (b, n), float32.
        r: Radius, (b, 1) or (1, 1), float32.
        norm: "l2" or "l1".
        inside: What counts as inside, relative to the radius: such rows are only clipped.
        farthest: Displacements are clamped to this.
    """
    kernel, power_of_two = _kernel()
    x_adv, x, r = x_adv.contiguous(), x.contiguous(), r.contiguous()
    rows, size = x.shape
    block = power_of_two(size)
    result = torch.empty_like(x)
    kernel[(rows,)](
        x_adv,
        x,
        r,
        result,
        size,
        int(r.numel() > 1),
        inside,
        farthest,
        ONE_NORM=norm == "l1",
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )
    return result


def _kernel() -> tuple[Any, Any]:
    import triton  # pyright: ignore[reportMissingImports]

    from multirobust.kernels import project_rows

    return project_rows, triton.next_power_of_2
