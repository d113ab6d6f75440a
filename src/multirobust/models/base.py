"""The one classifier: normalization, a trunk of convolutions, average pooling, a linear head."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from multirobust.errors import InputError, suggestion
from multirobust.models.normalization import Normalize
from multirobust.types import Logits

__all__ = ["Builder", "Classifier", "Trunk", "check_count", "check_images"]

_CLASSES_HINT = "pass classes=10, say, or a data set"
_CHANNELS_HINT = "it is 1 for gray images and 3 for color"


class Trunk(NamedTuple):
    """The convolutions of an architecture.

    Args:
        layers: Maps normalized images (b, c, h, w) to features (b, width, h', w').
        width: Number of channels that it returns.
    """

    layers: nn.Module
    width: int


@final
class Classifier(nn.Module):
    """Maps images in [0, 1] of any size to logits; `forward(x)` is `head(features(x))`.

    Build one with `multirobust.models.build`, which also draws its weights.

    Args:
        name: Name of the architecture, shown in its repr.
        trunk: Its convolutions, for this number of channels.
        classes: Number of classes, at least 2.
        normalize: Its normalization; decides the number of channels.
    """

    def __init__(self, name: str, trunk: Trunk, *, classes: int, normalize: Normalize):
        super().__init__()
        self.name = name
        self.classes = classes
        self.channels = normalize.mean.shape[1]
        self.normalize = normalize
        self.trunk = trunk.layers
        self.head = nn.Linear(trunk.width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features (b, d) of images x (b, c, h, w) in [0, 1].

        Raises:
            InputError: If x has another rank, channel count or dtype than the model.
        """
        check_images(x, self.channels, self.normalize.mean.dtype)
        return self.trunk(self.normalize(x)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Logits:
        """Return the logits (b, classes) of images x (b, c, h, w) in [0, 1]."""
        return self.head(self.features(x))

    def extra_repr(self) -> str:
        """Show what tells it from its siblings."""
        return f"{self.name}, classes={self.classes}, channels={self.channels}"


@final
@dataclass(frozen=True)
class Builder:
    """Builds classifiers of one architecture; a row of `multirobust.models.MODELS`.

    Args:
        name: Name of the architecture.
        trunk: Maps the number of channels, and the options of the architecture, to its trunk.
    """

    name: str
    trunk: Callable[..., Trunk]

    @property
    def options(self) -> dict[str, Any]:
        """The options of the architecture with their defaults."""
        fixed = self.trunk.keywords if isinstance(self.trunk, functools.partial) else {}
        return {
            parameter.name: parameter.default
            for parameter in inspect.signature(self.trunk).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in fixed
        }

    def __call__(
        self,
        data: Any = None,
        *,
        classes: int | None = None,
        channels: int | None = None,
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Classifier:
        """Return a new classifier in training mode, on the CPU, in the default dtype.

        The same seed gives the same weights; the global random state is neither read nor changed.

        Args:
            data: A data set that has classes, channels, mean and std; what is given here wins.
            classes: Number of classes, at least 2.
            channels: Number of channels of the images; 3 without data.
            mean: Mean of each channel on the [0, 1] pixel scale; 0 without data.
            std: Standard deviation of each channel on the same scale; 1 without data.
            seed: Decides the weights.
            **options: The options of the architecture, see `options`.

        Raises:
            InputError: If classes is missing, a value breaks its rule, or an option is unknown.
        """
        self._check_options(options)
        classes = check_count("classes", _given(data, "classes", classes, None), 2, _CLASSES_HINT)
        channels = check_count("channels", _given(data, "channels", channels, 3), 1, _CHANNELS_HINT)
        check_count("seed", seed, 0, "each seed draws other weights")
        normalize = Normalize(
            _given(data, "mean", mean, [0.0] * channels),
            _given(data, "std", std, [1.0] * channels),
        )
        if normalize.mean.shape[1] != channels:
            raise InputError(
                f"mean and std must hold one number for each of the {channels} channels, "
                f"got {normalize.mean.shape[1]}; give channels={normalize.mean.shape[1]}."
            )
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            trunk = self.trunk(channels, **options)
            model = Classifier(self.name, trunk, classes=classes, normalize=normalize)
        _initialize(model.modules(), torch.Generator().manual_seed(seed))
        return model

    def _check_options(self, options: Iterable[str]) -> None:
        for name in options:
            if name not in self.options:
                known = ", ".join(sorted(self.options)) or "none"
                raise InputError(
                    f"Unknown option of {self.name}: {name!r}.{suggestion(name, self.options)} "
                    f"Known: {known}."
                )


def check_images(x: Tensor, channels: int, dtype: torch.dtype) -> None:
    """Raise InputError unless x is a batch of floating-point images for a model; reads no pixel."""
    if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
        raise InputError(
            f"x must be images of shape (b, {channels}, h, w) for this model, got "
            f"{tuple(x.shape)}; channels come second, and a single image is x[None]."
        )
    if x.dtype != dtype and not (
        x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
    ):
        raise InputError(
            f"x must be {dtype} as this model is, got {x.dtype}; use x.to({dtype}), and divide "
            "uint8 images by 255."
        )


def check_count(name: str, value: object, least: int, hint: str) -> int:
    """Return the value, an integer of at least `least`; raise InputError if it is anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {value!r}; {hint}.")
    return value


def _given(data: Any, name: str, value: Any, default: Any) -> Any:
    """Return the value if given, else that of the data, else the default."""
    if value is not None:
        return value
    if data is None:
        return default
    if not hasattr(data, name):
        raise InputError(
            f"data must have classes, channels, mean and std, {data!r} has no {name}; "
            f"give {name} as a keyword instead."
        )
    return getattr(data, name)


@torch.no_grad()
def _initialize(modules: Iterable[nn.Module], generator: torch.Generator) -> None:
    """Draw all weights anew: Kaiming normal convolutions, uniform head, BatchNorm as identity.

    References: He et al., Delving deep into rectifiers, ICCV 2015.
    """
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
