"""The configuration of the data."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from multirobust.config.section import Count, Section

__all__ = ["DataConfig", "is_path"]

UnlabeledShare = Annotated[float, Field(gt=0, lt=1, strict=True)] | Literal["pooled"]
_OF_UNLABELED = ("unlabeled_limit", "unlabeled_share", "unlabeled_digest", "epoch")


class DataConfig(Section):
    """What is learned from.

    Args:
        name: A data set of `multirobust list datasets`; or the path of a folder or an `.npz` file
            of one's own, see `data.own`. A path holds a slash, as in `./digits`, or ends in `.npz`.
        folder: Where its files are; None reads the environment variable MULTIROBUST_DATA.
        download: Fetch what is missing, with its checksum.
        train_limit: Use only the first images of the training set.
        test_limit: Use only the first images of the test set.
        validation: How many training images to hold out.
        augmentation: "auto" for the published one of the data set, which for one's own is none;
            or "none", "flip" (mirror one image in two) or "crop_flip" (pad-4 crops too).
        size: For a folder of one's own: scale and crop the images to so many pixels.
        class_names: For one's own: a name for each class in the order of the labels.
        cache: Keep decoded image files for the next start, in the user's cache.
        placement: Where a training keeps the images: as bytes on the "device"; in the memory of the
            "host", where a thread gathers batches ahead; or, for a folder of one's own that is
            larger than memory, in a file on the "disk", in the user's cache. "auto" takes the
            device if a quarter of its free memory is enough, and else the host. No result depends
            on it.
        digest: SHA-256 of the training images, where no published checksum says what they are. A
            run notes it; other images are refused then.
        unlabeled: A file of pseudo-labeled images to train on too, see `data.pseudo_labeled`.
        unlabeled_limit: Use only the first of them.
        unlabeled_share: Their share of each batch; or "pooled", which shuffles all images together,
            whatever their share then is.
        unlabeled_digest: SHA-256 of them and their pseudo-labels. A run notes it: they decide which
            run it is, not where they lie, and others are refused then.
        epoch: An epoch is one pass over the "labeled" images, or over as many images as there are
            in "all".
    """

    name: str = "cifar10"
    folder: str | None = None
    download: bool = False
    train_limit: Count | None = None
    test_limit: Count | None = None
    validation: Annotated[int, Field(ge=0, strict=True)] = 0
    augmentation: Literal["auto", "none", "flip", "crop_flip"] = "auto"
    size: Count | None = None
    class_names: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    cache: bool = True
    placement: Literal["auto", "device", "host", "disk"] = "auto"
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    unlabeled: Annotated[str, Field(min_length=1)] | None = None
    unlabeled_limit: Count | None = None
    unlabeled_share: UnlabeledShare = 0.5
    unlabeled_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    epoch: Literal["labeled", "all"] = "labeled"

    @model_validator(mode="after")
    def _digits_have_no_folder(self) -> DataConfig:
        if self.name == "digits" and self.folder is not None:
            raise ValueError(
                f"digits are embedded and have no folder, got folder {self.folder!r}; drop it"
            )
        return self

    @property
    def own(self) -> bool:
        """Whether the name is the path of images of one's own."""
        return is_path(self.name)

    @model_validator(mode="after")
    def _only_ones_own_images_have_a_form(self) -> DataConfig:
        idle = {"folder": self.folder, "download": self.download or None} if self.own else {}
        if not self.own:
            idle = {"size": self.size, "class_names": self.class_names}
        elif self.name.endswith(".npz"):
            idle["size"] = self.size
        for field, value in idle.items():
            if value is not None:
                raise ValueError(f"{field} is not for {self.name!r}, got {value!r}; drop it")
        return self

    @model_validator(mode="after")
    def _only_a_folder_is_kept_on_the_disk(self) -> DataConfig:
        if self.placement == "disk" and (not self.own or self.name.endswith(".npz")):
            raise ValueError(
                f"placement 'disk' is for a folder of one's own images, got {self.name!r}; use "
                "'host'"
            )
        if self.placement == "disk" and not self.cache:
            raise ValueError(
                "placement 'disk' keeps decoded images in the cache, got cache = false; set "
                "data.cache to true, or data.placement to 'host'"
            )
        return self

    @model_validator(mode="after")
    def _unlabeled_images_are_used_one_way(self) -> DataConfig:
        if self.unlabeled is None:
            fields = type(self).model_fields
            idle = [n for n in _OF_UNLABELED if getattr(self, n) != fields[n].default]
            if idle:
                raise ValueError(
                    f"{idle[0]} says how unlabeled images are used, got "
                    f"{getattr(self, idle[0])!r} without any; set data.unlabeled, or drop it"
                )
        elif self.unlabeled_share == "pooled" and self.epoch == "labeled":
            raise ValueError(
                "images that are pooled are seen once an epoch, labeled or not, got epoch "
                "'labeled'; set data.epoch to 'all', or data.unlabeled_share to a number such as "
                "0.5"
            )
        return self


def is_path(name: str) -> bool:
    """Return whether a name of data is a path, and not the name of a data set."""
    return "/" in name or os.sep in name or name.endswith(".npz")
