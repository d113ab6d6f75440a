"""The suites of what no pixel norm measures; each level of an attack is a threat of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from multirobust.attacks import (
    JPEGL1,
    JPEGL2,
    Attack,
    Corruption,
    Elastic,
    Fog,
    Gabor,
    JPEGLinf,
    ReColor,
    Snow,
    SpatialGradient,
    SpatialGrid,
    SpatialRandom,
    StAdv,
    StoredImages,
)
from multirobust.attacks.corruptions import CORRUPTIONS
from multirobust.attacks.corruptions import SEVERITIES as CORRUPTION_LEVELS
from multirobust.data import Split, corrupted_images
from multirobust.errors import InputError
from multirobust.evaluation.named import NamedAttack, Suite
from multirobust.threats import Transformation

__all__ = ["corruptions", "spatial", "unforeseen"]

PUBLISHED_SPATIAL = 3
"""The level of 30 degrees and 3 of 32 pixels."""

SPATIAL_STEPS = 20
FIELD_STEPS = 100
"""Steps of StAdv and ReColor."""

_KANG = (Elastic, JPEGLinf, JPEGL2, JPEGL1, Fog, Snow, Gabor)


def spatial(severities: Sequence[int] | None = None) -> Suite:
    """Rotation and translation: the grid, the worst of ten draws, and gradient ascent.

    Without severities, the published radius.

    References: Engstrom et al., ICML 2019.
    """
    levels = _levels("spatial", SpatialGrid.severities, severities or (PUBLISHED_SPATIAL,))
    kinds = (
        ("spatial_random", SpatialRandom),
        ("spatial_gradient", partial(SpatialGradient, steps=SPATIAL_STEPS)),
        ("spatial_grid", SpatialGrid),
    )
    attacks = [
        NamedAttack(f"{name}_{level}", make(radius=radius), f"spatial@{level}")
        for level, radius in levels
        for name, make in kinds
    ]
    return Suite("spatial", tuple(attacks), mode="per_threat")


def unforeseen(severities: Sequence[int] | None = None) -> Suite:
    """Elastic, JPEG in three norms, fog, snow, Gabor noise, flow fields and colors, maximized.

    Without severities, the six published levels of Kang et al., and of StAdv and ReColor, whose
    twenty levels are 0.005 apart, the published 0.05 and 0.06.

    References: Kang et al. 2019; Xiao et al. 2018; Laidlaw and Feizi 2019.
    """
    attacks = [
        _leveled(kind.name, kind, level, radius)
        for kind in _KANG
        for level, radius in _levels(kind.name, kind.severities, severities)
    ]
    for kind, usual in ((StAdv, 10), (ReColor, 12)):
        attacks += [
            _leveled(kind.name, partial(kind, steps=FIELD_STEPS), level, radius)
            for level, radius in _levels(kind.name, kind.severities, severities or (usual,))
        ]
    return Suite("unforeseen", tuple(attacks))


def corruptions(
    severities: Sequence[int] | None = None,
    *,
    folder: str | None = None,
    split: Split | None = None,
) -> Suite:
    """The 19 common corruptions, at five severities unless some are named.

    Args:
        severities: Which, from 1 to 5; None takes all.
        folder: Of the published files of CIFAR-10-C; None computes the corruptions.
        split: The clean images that those files belong to.

    References: Hendrycks and Dietterich, ICLR 2019.
    """
    attacks = [
        NamedAttack(
            f"{name}_{level}",
            _stored(folder, name, level, split) if folder else Corruption(name, level),
            f"{name}@{level}",
        )
        for name in CORRUPTIONS
        for level, _ in _levels("corruptions", CORRUPTION_LEVELS, severities)
    ]
    return Suite("corruptions", tuple(attacks))


def _stored(folder: str, name: str, level: int, split: Split | None) -> Attack:
    if split is None:
        raise InputError(
            "split: stored corruptions belong to images, got none; pass the clean test split."
        )
    images = corrupted_images(folder, name, level, test=split)
    return StoredImages(Transformation(name, float(level)), images)


def _leveled(name: str, make: Callable[..., Attack], level: int, radius: float) -> NamedAttack:
    return NamedAttack(f"{name}_{level}", make(radius=radius), f"{name}@{level}")


def _levels(
    name: str, published: Sequence[float], severities: Sequence[int] | None
) -> list[tuple[int, float]]:
    """Return the chosen levels, from 1 on, each with its radius."""
    chosen = range(1, len(published) + 1) if severities is None else severities
    for level in chosen:
        if not 1 <= level <= len(published):
            raise InputError(
                f"severities: those of {name} go from 1 to {len(published)}, got {level}; set "
                "evaluation.severities to levels that all attacks of the suite have."
            )
    return [(level, published[level - 1]) for level in chosen]
