"""Projections and steepest steps as compiled loops on a CPU, where nobody wants a derivative.

An attack step projects as often as it passes the network. Written in PyTorch a projection is some
eighty operations that each read and write the batch; here an image is read once, its unknown is
searched in the processor's cache, and the search ends when the image is done.

Compiled by Numba. Where it is missing, or does not know the Python that runs, PyTorch does the
work, and the versions in a result's `provenance` say that Numba is "unknown".
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

__all__ = [
    "differing",
    "is_native",
    "is_plain",
    "native_projection",
    "sparse_direction",
    "sparse_move",
    "splitmix",
]

_PIXELS_A_THREAD = 1 << 18
"""Below this a thread costs more than it saves."""


def is_plain(*tensors: Tensor) -> bool:
    """Tell whether these are numbers on a CPU that no derivative, tracer or vmap looks at."""
    if torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch.compiler.is_compiling():
        return False
    return all(
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


def is_native(*tensors: Tensor) -> bool:
    """Tell whether the loops serve these tensors: plain, float32, and Numba is there."""
    if not is_plain(*tensors) or any(tensor.dtype != torch.float32 for tensor in tensors):
        return False
    return _loops() is not None


def native_projection(
    x_adv: Tensor, x: Tensor, r: Tensor, *, norm: str, inside: float = 1, farthest: float = 1
) -> Tensor:
    """Return the closest points to x_adv within r of x in the norm and in [0, 1].

    Images have nothing to do with each other: their bits depend on no other, nor on the threads.

    Args:
        x_adv: Any values, (b, ...), float32.
        x: In [0, 1], of the same shape, float32.
        r: Radius, one number or b of them, float32.
        norm: "linf", "l2" or "l1".
        inside: What counts as inside, relative to the radius: such images are only clipped (l2 and
            l1).
        farthest: Displacements are clamped to this (l2 and l1).
    """
    loops, result = _loops(), torch.empty_like(x, memory_format=torch.contiguous_format)
    assert loops is not None
    rows = [_rows(x_adv), _rows(x), r.reshape(-1).numpy(), _rows(result)]
    if norm == "linf":
        _shared(loops.clip_rows, rows)
    else:
        _shared(loops.project_rows, rows, norm == "l1", np.float32(inside), np.float32(farthest))
    return result


def sparse_direction(gradient: Tensor, pixels: Tensor, count: int) -> Tensor:
    """Return equal steps of l1 norm 1 in the `count` coordinates of largest gradient, (b, n).

    Only of those that [0, 1] lets move; of equal ones at the edge, the first.
    """
    loops, result = _loops(), torch.empty_like(gradient, memory_format=torch.contiguous_format)
    assert loops is not None
    loops.sparse_rows(_rows(gradient), _rows(pixels), count, _rows(result))
    return result


def sparse_move(gradient: Tensor, pixels: Tensor, counts: Tensor, steps: Tensor) -> Tensor:
    """Return images a step on in the pixels of largest gradient that [0, 1] lets move.

    Where fewer than `counts` have a gradient, the image stays; ties with the last one move too.

    Args:
        gradient: (b, ...), float32.
        pixels: In [0, 1], of the same shape, float32.
        counts: How many pixels, from 1 to all, (b,), int64.
        steps: l1 norm of each step, (b,), float32.
    """
    loops, result = _loops(), torch.empty_like(pixels, memory_format=torch.contiguous_format)
    assert loops is not None
    rows = (_rows(gradient), _rows(pixels), counts.numpy(), steps.numpy(), _rows(result))
    loops.sparse_move_rows(*rows)
    return result


def differing(images: Tensor, others: Tensor) -> Tensor:
    """Return in how many pixels images differ, (b,); all float32."""
    loops, result = _loops(), images.new_empty(len(images))
    assert loops is not None
    loops.differing_rows(_rows(images), _rows(others), result.numpy())
    return result


def splitmix(keys: Tensor, turns: Tensor, first: int, count: int) -> Tensor | None:
    """Return words of SplitMix64, (b, count), int64, or None where the loops do not serve.

    Args:
        keys: (b,), int64.
        turns: (b,), int64.
        first: Number of the first word within its turn.
        count: How many.
    """
    if keys.device.type != "cpu" or type(keys) is not Tensor or (loops := _loops()) is None:
        return None
    words = keys.new_empty((len(keys), count))
    rows = [np.asarray(each).view(np.uint64) for each in (keys, turns)]
    loops.splitmix_rows(*rows, np.uint64(first), words.numpy().view(np.uint64))
    return words


def _rows(images: Tensor) -> np.ndarray:
    return images.contiguous().flatten(1).numpy()


def _shared(loop: Any, rows: list[np.ndarray], *settings: Any) -> None:
    """Run a loop over rows (x_adv, x, r, result), in several threads where they are many."""
    count, size = rows[1].shape
    threads = min(torch.get_num_threads(), count * size // _PIXELS_A_THREAD, count)
    if threads < 2:
        loop(*rows, *settings)
        return
    ends = np.linspace(0, count, threads + 1).astype(int)
    parts = [[each if len(each) == 1 else each[a:b] for each in rows] for a, b in pairwise(ends)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: loop(*part, *settings), parts))


@cache
def _loops() -> ModuleType | None:
    try:
        from multirobust import loops
    except ImportError:
        return None
    return loops
