"""A batch in which every image has a threat of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from multirobust.errors import InputError
from multirobust.threats.base import Threat
from multirobust.threats.maps import BallMap
from multirobust.types import Images, PerImage

__all__ = ["Allotment", "MixedThreat", "mapped_into"]


@final
@dataclass(frozen=True)
class Allotment:
    """Which of several groups each image of a batch belongs to. Made by `of`.

    The host knows the groups, so that work on a device that goes group by group never waits for it.

    Args:
        groups: The group of each image, from 0 on.
        count: Number of groups; one may be empty.
        index: The groups once more, (b,), int64, on the device of the images.
        order: Positions of the images sorted by group, and by position within a group, (b,).
        back: Where each image is in that order, (b,).
    """

    groups: tuple[int, ...]
    count: int
    index: Tensor = field(repr=False, compare=False)
    order: Tensor = field(repr=False, compare=False)
    back: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, groups: Sequence[int], count: int, device: torch.device | str = "cpu") -> Allotment:
        """Return the allotment of images to groups.

        Args:
            groups: The group of each image.
            count: Number of groups.
            device: Of the images.

        Raises:
            InputError: If an image has a group that is not in 0..count - 1.

        >>> Allotment.of([2, 0, 2], 3).sizes
        (1, 0, 2)
        """
        groups = tuple(groups)
        if not all(0 <= group < count for group in groups):
            raise InputError(f"Allotment: groups must be numbers from 0 to {count - 1}: {groups}.")
        order = sorted(range(len(groups)), key=groups.__getitem__)
        back = [0] * len(order)
        for position, image in enumerate(order):
            back[image] = position
        table = torch.tensor((groups, order, back), dtype=torch.long).to(device, non_blocking=True)
        return cls(groups, count, *table.unbind())

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many images each group has."""
        return tuple(self.groups.count(group) for group in range(self.count))

    def rows(self, start: int, stop: int) -> Allotment:
        """Return the allotment of some consecutive images."""
        return Allotment.of(self.groups[start:stop], self.count, self.index.device)

    @classmethod
    def joined(cls, parts: Sequence[Allotment]) -> Allotment:
        """Return the allotment of the images of all parts, one part after the other."""
        groups = [group for part in parts for group in part.groups]
        return cls.of(groups, parts[0].count, parts[0].index.device)

    def parted(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of each group, in the order of the batch."""
        return images.index_select(0, self.order).split(self.sizes)

    def merged(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the rows of all groups at their places in the batch: what `parted` takes apart."""
        return torch.cat(list(parts)).index_select(0, self.back)


@final
@dataclass(frozen=True)
class MixedThreat:
    """Around each image of one batch the ball of its own group.

    What it does is what the balls do, group by group: the same bits, the same derivatives.

    Args:
        threats: One for each group.
        allotment: Which group each image belongs to.

    Raises:
        InputError: If there are not as many threats as groups.
    """

    threats: tuple[Threat, ...]
    allotment: Allotment

    def __post_init__(self) -> None:
        if len(self.threats) != self.allotment.count:
            raise InputError(
                f"MixedThreat: there must be one threat for each of the {self.allotment.count} "
                f"groups, got {len(self.threats)}."
            )

    @property
    def radius(self) -> PerImage:
        """The radius of each image's ball, (b,), float64."""
        radii = torch.tensor([t.radius for t in self.threats], dtype=torch.float64)
        return radii.to(self.allotment.index.device)[self.allotment.index]

    def rows(self, start: int, stop: int) -> MixedThreat:
        """Return the threat of some consecutive images."""
        return MixedThreat(self.threats, self.allotment.rows(start, stop))

    def each(self, function: Callable[..., Tensor], *images: Tensor) -> Tensor:
        """Return function(threat, *images) of each group, put together again.

        Args:
            function: Maps the threat of a group and the rows of that group to as many rows.
            images: Tensors whose rows are the images of the batch.
        """
        sizes = self.allotment.sizes
        for threat, size in zip(self.threats, sizes, strict=True):
            if size == len(self.allotment.groups):
                return function(threat, *images)
        parts = zip(*(self.allotment.parted(tensor) for tensor in images), strict=True)
        rows = zip(self.threats, sizes, parts, strict=True)
        return self.allotment.merged([function(t, *part) for t, size, part in rows if size])

    def distance(self, x_adv: Images, x: Images) -> PerImage:
        """See `Threat.distance`."""
        return self.each(lambda threat, *images: threat.distance(*images), x_adv, x)

    def project(self, x_adv: Images, x: Images) -> Images:
        """See `Threat.project`."""
        return self.each(lambda threat, *images: threat.project(*images), x_adv, x)

    def ascent_direction(self, gradient: Images, x_adv: Images) -> Images:
        """See `Threat.ascent_direction`."""
        return self.each(lambda threat, *images: threat.ascent_direction(*images), gradient, x_adv)

    def sample(self, x: Images, generator: torch.Generator | None = None) -> Images:
        """See `Threat.sample`. Each threat draws for all images and gives those of its group."""
        generator = generator or torch.Generator(x.device).manual_seed(0)
        drawn = [threat.sample(x, generator) for threat in self.threats]
        places = torch.arange(len(x), device=x.device)
        return torch.stack(drawn)[self.allotment.index, places]


def mapped_into(
    ball_map: BallMap, threat: Threat | MixedThreat, noise: Images, x: Images
) -> Images:
    """Return what a map makes of noise (b, c, h, w) around images x, each in its own threat."""
    if isinstance(threat, MixedThreat):
        return threat.each(ball_map, noise, x)
    return ball_map(threat, noise, x)
