"""What all sections of a recipe share: frozen, strict, and no unknown field."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Count", "NonNegative", "Positive", "Section", "Seed", "Share"]

# Strict: a boolean or a text is no number.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**64, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]


class Section(BaseModel):
    """A frozen group of fields; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
