"""Projection for attacks that project the same rows again and again.

In linf, ball and box are one interval a pixel. Its ends are found once, when a row begins; from
then on a projection is a clamp, a tenth of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multirobust.threats import Threat
from multirobust.types import Images

__all__ = ["ends", "nearest"]


def ends(x: Images, threat: Threat) -> dict[str, Tensor]:
    """Return what `nearest` needs in the state of rows: in linf "low" and "high", else nothing."""
    if threat.norm != "linf":
        return {}
    return {"low": threat.project(x - 1, x), "high": threat.project(x + 1, x)}


def nearest(images: Images, state: dict[str, Tensor], threat: Threat) -> Images:
    """Return the projection of the images onto the threat around the rows' clean images, "x"."""
    if "low" in state:
        return torch.clamp(images, state["low"], state["high"])
    return threat.project(images, state["x"])
