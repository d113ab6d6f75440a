"""A shorter way to the l2 projection where nobody wants a derivative, on a CPU.

The displacement clip(t w) is built once for each t tried, and the last one is the answer. Whoever
calls it checks the length, and takes the long way where it is off: rounding, numbers at the ends of
their range, or too many steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

__all__ = ["is_plain", "quick_l2"]

_MOST_STEPS = 12


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


def quick_l2(w: Tensor, x: Tensor, r: Tensor, inside: Tensor) -> Tensor:
    """Return clip(t w) within the box around x, with t such that its l2 norm is r, if it ends well.

    The squared norm P is concave in s = t^2. The secant method from s = 0 and the s at which no
    bound binds stays below the root, as the slope ahead is never steeper than the one behind.

    Args:
        w: Displacements, (b, n).
        x: Clean images, (b, n).
        r: Radius, (b, 1) or (1, 1).
        inside: Images that need no solution, (b, 1).
    """
    low, high, target = -x, 1 - x, r.double().square()
    tolerance = 2 * torch.finfo(w.dtype).eps
    delta = torch.empty_like(w)
    behind = power_behind = torch.zeros_like(target)
    s = target / torch.linalg.vector_norm(w, dim=1, keepdim=True).double().square()
    done = inside
    for _ in range(_MOST_STEPS):
        torch.mul(w, s.sqrt().to(w.dtype), out=delta)
        torch.clamp(delta, low, high, out=delta)
        power = torch.linalg.vector_norm(delta, dim=1, keepdim=True).double().square()
        missing = target - power
        done = done | (missing.abs() <= tolerance * target)
        if done.all():
            break
        following = s + missing * (s - behind) / (power - power_behind)
        behind, power_behind = s, power
        s = torch.where(done, s, following)
    return delta
