"""A folded model computes what the model does in evaluation mode, with fewer BatchNorm layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from multirobust import models
from multirobust.models import Folded

NAMES = {"small_cnn": (4, 0), "preact_resnet_18": (8, 9), "wrn_28_2": (12, 13)}
"""BatchNorm layers that directly follow a convolution, and others."""


def used(model: nn.Module, seed: int = 0, shape: tuple[int, ...] = (4, 3, 16, 16)) -> nn.Module:
    """Give BatchNorm weights and running statistics that are not those of the start."""
    g = torch.Generator().manual_seed(seed)
    model = model.double()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d) and part.weight is not None:
            part.weight.data.copy_(torch.randn(len(part.weight), generator=g).abs() + 0.5)
            part.bias.data.copy_(torch.randn(len(part.bias), generator=g))
    with torch.no_grad():
        model.train()(torch.rand(shape, generator=g, dtype=torch.float64))
    return model.eval()


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model without drawing from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return used(make())


def images(seed: int = 1, shape: tuple[int, ...] = (4, 3, 16, 16)) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=g, dtype=torch.float64)


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    weights = torch.linspace(-1, 2, model(leaf).numel(), dtype=x.dtype)
    return torch.autograd.grad((model(leaf).flatten() * weights).sum(), leaf)[0]


def counts(model: nn.Module) -> tuple[int, int]:
    """Return how many BatchNorm layers are left, and how many are one multiply-add."""
    kinds = [type(part).__name__ for part in model.modules()]
    return kinds.count("BatchNorm2d"), kinds.count("_ScaleShift")


def agree(model: nn.Module, folded: nn.Module, x: torch.Tensor) -> None:
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient(folded, x), gradient(model, x), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_are_those_of_the_model(name):
    model = used(models.build(name, classes=10, mean=(0.5,) * 3, std=(0.2,) * 3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = Folded(model)
    agree(model, folded, images())
    into, others = NAMES[name]
    assert counts(model) == (into + others, 0)
    assert counts(folded) == (0, others)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_refresh_takes_over_what_was_learned_since(name):
    model = used(models.build(name, classes=10))
    folded = Folded(model)
    stale, x = folded(images()), images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    used(model, seed=5)
    folded.refresh()
    agree(model, folded, x)
    assert not torch.allclose(folded(x), stale)


def test_a_model_in_training_mode_is_folded_as_in_evaluation_mode():
    model = used(models.build("small_cnn", classes=10))
    expected = model(images())
    folded = Folded(model.train())
    torch.testing.assert_close(folded(images()), expected, rtol=1e-10, atol=1e-10)
    assert model.training
    assert not any(part.training for part in folded.modules())


def test_a_convolution_with_a_bias_and_a_norm_without_weights_are_folded():
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False)))
    folded = Folded(model)
    agree(model, folded, images())
    assert counts(folded) == (0, 0)


def shared() -> nn.Module:
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(3), nn.ReLU(), convolution)


def tied() -> nn.Module:
    first, second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    second.weight = first.weight
    return nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), second)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    model[0].register_forward_hook(lambda module, inputs, output: output.tanh())
    return model


class Apart(nn.Module):
    """A layer whose own code decides what comes after what."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Do something between the two."""
        return self.norm(self.first(x).tanh())


class Doubled(nn.Sequential):
    """A sequence that is none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pass the second layer first."""
        return self[1](self[0](x).relu())


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (shared, (0, 1)),
        (tied, (0, 1)),
        (hooked, (0, 1)),
        (Apart, (0, 1)),
        (lambda: Doubled(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), (0, 1)),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), (0, 1)),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), (0, 1)),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
            (1, 0),
        ),
    ],
)
def test_a_norm_that_no_convolution_alone_precedes_stays_or_is_one_operation(make, left):
    model = made(make)
    folded = Folded(model)
    agree(model, folded, images())
    assert counts(folded) == left
