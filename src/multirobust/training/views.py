"""The views of a batch that was attacked in several rounds, put together and taken apart again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multirobust.threats import Allotment

__all__ = ["joined", "rows"]


def joined(views: Sequence[Any]) -> Any:
    """Return the views of all rounds as those of one batch.

    Args:
        views: What `Defense.craft` returned in each round: tensors whose rows are images, and
            tuples and dataclasses of them. Anything else is taken from the first round.
    """
    first = views[0]
    if len(views) == 1:
        return first
    if isinstance(first, Allotment):
        return Allotment.joined(views)
    if isinstance(first, Tensor) and first.ndim:
        return torch.cat(list(views))
    if type(first) is tuple:
        return tuple(joined(row) for row in zip(*views, strict=True))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = _tensor_fields(first)
        parts = {name: joined([getattr(view, name) for view in views]) for name in names}
        return dataclasses.replace(first, **parts)
    return first


def rows(views: Any, start: int, stop: int, count: int) -> Any:
    """Return the views of some images of a batch, for `Defense.loss`.

    Args:
        views: As in `joined`; a tensor of another number of rows than the batch is left whole.
        start: First image.
        stop: Image after the last.
        count: Images of the batch.
    """
    if stop - start == count:
        return views
    if isinstance(views, Tensor) and views.ndim and len(views) == count:
        return views[start:stop]
    if isinstance(views, Allotment):
        return views.rows(start, stop)
    if type(views) is tuple:
        return tuple(rows(view, start, stop, count) for view in views)
    if dataclasses.is_dataclass(views) and not isinstance(views, type):
        names = _tensor_fields(views)
        parts = {name: rows(getattr(views, name), start, stop, count) for name in names}
        return dataclasses.replace(views, **parts)
    return views


def _tensor_fields(views: Any) -> list[str]:
    """Name the fields that hold images, or values that may."""
    names = [field.name for field in dataclasses.fields(views) if field.init]
    return [name for name in names if _may_hold_images(getattr(views, name))]


def _may_hold_images(value: Any) -> bool:
    return isinstance(value, (Tensor, tuple)) or dataclasses.is_dataclass(value)
