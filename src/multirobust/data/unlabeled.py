"""Images whose labels a model has guessed, as a part of the data to train on."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal, final

from multirobust.data.content import content_digest
from multirobust.data.datasets import Split
from multirobust.errors import InputError

__all__ = ["Unlabeled"]


@final
@dataclass(frozen=True, eq=False)
class Unlabeled:
    """Images whose labels a model has guessed, and how they are mixed with the labeled ones.

    Args:
        split: The images with their pseudo-labels.
        share: Their share of each batch; or "pooled", which shuffles all images together.
        epoch: An epoch is one pass over the "labeled" images, or over as many images as there are
            in "all"; pooled images need "all".

    Raises:
        InputError: If the share is not above 0 and below 1, or the two contradict each other.
    """

    split: Split
    _: KW_ONLY
    share: float | Literal["pooled"] = 0.5
    epoch: Literal["labeled", "all"] = "labeled"

    def __post_init__(self) -> None:
        if self.share == "pooled" and self.epoch != "all":
            raise InputError(
                "epoch must be 'all' for pooled images, which are seen once an epoch, labeled or "
                f"not, got {self.epoch!r}; or give a share such as 0.5."
            )
        if self.share != "pooled" and not (isinstance(self.share, float) and 0 < self.share < 1):
            raise InputError(
                f"share must be above 0 and below 1, or 'pooled', got {self.share!r}; 0.5 is usual."
            )

    def __len__(self) -> int:
        return len(self.split)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images and pseudo-labels, whatever file they came from."""
        return content_digest(self.split)
