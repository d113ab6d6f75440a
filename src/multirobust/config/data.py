"""The configuration of the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from multirobust.config.section import Count, Section

__all__ = ["DataConfig"]


class DataConfig(Section):
    """What is learned from.

    Args:
        name: A data set of `multirobust list datasets`.
        folder: Where its files are; None reads the environment variable MULTIROBUST_DATA.
        download: Fetch what is missing, with its checksum.
        train_limit: Use only the first images of the training set.
        test_limit: Use only the first images of the test set.
        validation: How many training images to hold out.
        augmentation: "auto" for the published one of the data set, or "none".
    """

    name: str = "cifar10"
    folder: str | None = None
    download: bool = False
    train_limit: Count | None = None
    test_limit: Count | None = None
    validation: Annotated[int, Field(ge=0, strict=True)] = 0
    augmentation: Literal["auto", "none"] = "auto"

    @model_validator(mode="after")
    def _digits_have_no_folder(self) -> DataConfig:
        if self.name == "digits" and self.folder is not None:
            raise ValueError(
                f"digits are embedded and have no folder, got folder {self.folder!r}; drop it"
            )
        return self
