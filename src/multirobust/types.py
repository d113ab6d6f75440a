"""The few types that every floor shares.

Shapes are jaxtyping annotations. jaxtyping is a development dependency only: without it (an
installed package) the names below are plain aliases, with it (the tests) every annotated function
is checked at run time by beartype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    Images: TypeAlias = Tensor
    Labels: TypeAlias = Tensor
    Logits: TypeAlias = Tensor
    PerImage: TypeAlias = Tensor
else:
    try:
        from jaxtyping import Float, Int
        from torch import Tensor

        Images = Float[Tensor, "b c h w"]
        Labels = Int[Tensor, " b"]
        Logits = Float[Tensor, "b k"]
        PerImage = Float[Tensor, " b"]
    except ImportError:
        Images = Labels = Logits = PerImage = Any

__all__ = ["Images", "Labels", "Logits", "PerImage"]
