"""State from a file that anyone may have written: checked before a step is taken with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["checked_tensors", "load_optimizer"]


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Restore the momenta of an optimizer; its settings stay those that it was made with.

    Raises:
        TypeError: If it is not the state of an optimizer.
        ValueError: If a momentum is not of the shape of its weight.
    """
    if not isinstance(state, Mapping) or not isinstance(state["state"], Mapping):
        raise TypeError("there must be the state of an optimizer")
    for kept in state["state"].values():
        checked_tensors({name: value for name, value in kept.items() if value is not None})
    names = optimizer.defaults.keys() - {"lr"}
    ours = [{name: group[name] for name in names} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, settings in zip(optimizer.param_groups, ours, strict=True):
        group.update(settings)
    for weight, kept in optimizer.state.items():
        momentum = kept.get("momentum_buffer")
        if momentum is not None and (momentum.shape, momentum.dtype) != (
            weight.shape,
            weight.dtype,
        ):
            raise ValueError(
                f"a momentum of shape {tuple(momentum.shape)} for a weight of shape "
                f"{tuple(weight.shape)}"
            )


def checked_tensors(state: Any) -> dict[str, Tensor]:
    """Return a copy of named tensors.

    Raises:
        TypeError: If it is anything else.
    """
    if isinstance(state, Mapping):
        real = [isinstance(v, Tensor) and not v.is_complex() for v in state.values()]
        if all(real):
            return dict(state)
    raise TypeError("there must be tensors of real numbers by name")
