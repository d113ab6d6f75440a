"""Classifiers that take pixels in [0, 1], and the noise generator; `MODELS` is their table.

Each architecture is also a function here: `small_cnn(data)`, `preact_resnet_18(classes=10)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from multirobust.errors import lookup_error
from multirobust.models import small_cnn as _small_cnn
from multirobust.models.base import Builder, Classifier
from multirobust.models.folding import Folded
from multirobust.models.noise_generator import NoiseGenerator
from multirobust.models.normalization import Normalize
from multirobust.models.preact_resnet import BasicBlock, Bottleneck, preact_resnet
from multirobust.models.wide_resnet import wide_resnet

__all__ = [
    "MODELS",
    "Builder",
    "Classifier",
    "Folded",
    "NoiseGenerator",
    "Normalize",
    "build",
    "preact_resnet_18",
    "preact_resnet_50",
    "small_cnn",
    "wrn_28_2",
    "wrn_28_10",
    "wrn_34_10",
]

preact_resnet_18 = Builder(
    "preact_resnet_18", partial(preact_resnet, block=BasicBlock, depths=(2, 2, 2, 2))
)
preact_resnet_50 = Builder(
    "preact_resnet_50", partial(preact_resnet, block=Bottleneck, depths=(3, 4, 6, 3))
)
# From here on the name is the function, no longer the submodule that defines it.
small_cnn = Builder("small_cnn", _small_cnn.small_cnn)
wrn_28_2 = Builder("wrn_28_2", partial(wide_resnet, depth=28, widen=2))
wrn_28_10 = Builder("wrn_28_10", partial(wide_resnet, depth=28, widen=10))
wrn_34_10 = Builder("wrn_34_10", partial(wide_resnet, depth=34, widen=10))

MODELS: dict[str, Callable[..., nn.Module]] = {
    builder.name: builder
    for builder in (
        preact_resnet_18,
        preact_resnet_50,
        small_cnn,
        wrn_28_2,
        wrn_28_10,
        wrn_34_10,
    )
}


def build(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Return a new classifier of a named architecture.

    Args:
        name: A key of `MODELS`.
        classes: Number of classes, at least 2.
        channels: Number of channels of the images.
        mean: Mean of each channel on the [0, 1] pixel scale; 0 if left out.
        std: Standard deviation of each channel on the same scale; 1 if left out.
        seed: Decides the weights; the global random state is neither read nor changed.
        **options: The options of the architecture: `widths` of small_cnn, `width` of the
            pre-activation ResNets.

    Raises:
        InputError: If the name or an option is unknown, or a value breaks its rule.
    """
    if name not in MODELS:
        raise lookup_error("model", name, MODELS)
    return MODELS[name](
        classes=classes, channels=channels, mean=mean, std=std, seed=seed, **options
    )
