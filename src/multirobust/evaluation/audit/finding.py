"""What an audit reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["Finding", "counted"]


@final
@dataclass(frozen=True)
class Finding:
    """One reason to doubt the robust accuracies of a model.

    Args:
        code: Short name that stays the same over releases, for programs.
        message: What was seen, in numbers; what it does to the accuracy; the way out.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def counted(count: int, total: int) -> str:
    """Return a count with its share.

    >>> counted(3, 64)
    '3 of 64 images (4.7 %)'
    """
    return f"{count} of {total} images ({100 * count / total:.1f} %)"
