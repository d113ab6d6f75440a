"""Lean second derivatives are those of PyTorch, and take no more than they must."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from multirobust.metagrad import call_with, meta_gradient
from multirobust.models import build
from multirobust.second_order import FixedWeights

CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "padding": (0, 1), "dilation": 2},
    {"groups": 2, "padding": 1},
]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mixed(function, x: Tensor, weights: tuple[Tensor, ...], *, lean: bool) -> tuple[Tensor, ...]:
    """The value, the gradient by the weights, and d/dx of that gradient along a direction."""
    x = x.clone().requires_grad_()
    weights = tuple(weight.clone().requires_grad_() for weight in weights)
    if lean:
        with FixedWeights(weights):
            y = function(x, *weights)
    else:
        y = function(x, *weights)
    # Something whose first and second derivative by y depend on y.
    loss = (y.sin() * draw(*y.shape, seed=1)).sum()
    gradient = torch.autograd.grad(loss, weights, create_graph=True)
    direction = tuple(draw(*g.shape, seed=2 + i) for i, g in enumerate(gradient))
    return y, *gradient, *torch.autograd.grad(gradient, x, direction)


def assert_same(function, x: Tensor, *weights: Tensor) -> None:
    ours, theirs = (mixed(function, x, weights, lean=lean) for lean in (True, False))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution_has_the_second_derivative_of_pytorch(options):
    weight = draw(6, 4 // options.get("groups", 1), 3, 3)
    assert_same(lambda x, w: F.conv2d(x, w, **options), draw(3, 4, 9, 8), weight)


def test_a_convolution_with_a_bias_has_the_second_derivative_of_pytorch():
    assert_same(lambda x, w, b: F.conv2d(x, w, b), draw(3, 4, 5, 5), draw(6, 4, 3, 3), draw(6))


def test_two_convolutions_pass_the_direction_on():
    def function(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, first, padding=1).tanh(), second, stride=2)

    assert_same(function, draw(2, 3, 7, 7), draw(5, 3, 3, 3), draw(4, 5, 3, 3, seed=9))


@pytest.mark.parametrize("depth", [1, 2])
def test_batch_norm_has_the_second_derivative_of_pytorch(depth):
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        for _ in range(depth):
            x = F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-2).exp()
        return x

    assert_same(function, 2 + 3 * draw(4, 5, 3, 2), draw(5, seed=7), draw(5, seed=8))


@pytest.mark.parametrize("which", [0, 1], ids=["weight", "bias"])
def test_the_gradient_of_one_parameter_of_batch_norm_can_be_asked_for_alone(which):
    x, parameters = draw(4, 5, 3, 2).requires_grad_(), (draw(5, seed=7), draw(5, seed=8))
    found = []
    for lean in (True, False):
        weight, bias = (p.clone().requires_grad_() for p in parameters)
        with FixedWeights([weight, bias] if lean else []):
            y = F.batch_norm(x, None, None, weight, bias, training=True)
        chosen = (weight, bias)[which]
        (gradient,) = torch.autograd.grad(y.exp().sum(), chosen, create_graph=True)
        found += torch.autograd.grad(gradient.square().sum(), x)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_running_statistics_are_moved_as_ever():
    x, weight, bias = draw(4, 3, 2, 2), draw(3).requires_grad_(), draw(3).requires_grad_()
    moved = []
    for weights in ((weight, bias), ()):
        running = torch.zeros(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype)
        with FixedWeights(weights):
            F.batch_norm(x, *running, weight, bias, training=True, momentum=0.3)
        moved.append(running)
    torch.testing.assert_close(*moved, rtol=1e-14, atol=0)
    assert moved[0][0].abs().sum() > 0


class LookAhead:
    """The look-ahead of a network, by the images."""

    def __init__(self, name: str, dtype: torch.dtype, **options: int):
        self.model = build(name, classes=4, **options).to(dtype).train()
        self.theta = dict(self.model.named_parameters())
        self.images = 0.2 * draw(6, 3, 8, 8, dtype=dtype) + 0.5
        self.y = torch.arange(6) % 4

    def gradient(self, mode: str) -> Tensor:
        phi = (self.images.clone().requires_grad_(),)
        return meta_gradient(self.loss, self.outer, self.theta, phi, lr=0.1, mode=mode).gradients[0]

    def loss(self, theta: dict[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(call_with(self.model, theta, phi[0]), self.y)

    def outer(self, theta: dict[str, Tensor]) -> Tensor:
        return self.loss(theta, (1 - self.images,))


@pytest.mark.parametrize("mode", ["mixed_vjp", "recomputed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small_cnn", {"widths": [4, 8]}),
        ("preact_resnet_18", {"width": 4}),
        ("preact_resnet_50", {"width": 2}),
        ("wrn_28_2", {}),
    ],
)
def test_the_look_ahead_of_each_architecture_is_that_of_one_graph(
    name, options, dtype, tolerance, mode
):
    problem = LookAhead(name, dtype, **options)
    ours, theirs = problem.gradient(mode), problem.gradient("unrolled")
    assert theirs.norm() > 0
    assert (ours - theirs).norm() / theirs.norm() < tolerance


class ConvolutionFlops(TorchDispatchMode):
    """Adds up the arithmetic of all convolutions, those of their derivatives among them."""

    def __init__(self, work):
        super().__init__()
        self.total = 0
        with self:
            work()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, packet = func(*args, **(kwargs or {})), func._overloadpacket
        if "convolution" in packet.__name__:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


def convolution_flops(work) -> int:
    return ConvolutionFlops(work).total


def test_the_look_ahead_takes_two_training_passes_and_two_input_gradients():
    problem = LookAhead("preact_resnet_18", torch.float32, width=4)
    x = problem.images.clone().requires_grad_()

    def forward() -> None:
        problem.loss(problem.theta, (x,))

    def weights_alone() -> None:
        loss = problem.loss(problem.theta, (x.detach(),))
        torch.autograd.grad(loss, list(problem.theta.values()))

    once, training = convolution_flops(forward), convolution_flops(weights_alone)
    stem = 2 * 6 * 8 * 8 * 4 * 3 * 9
    assert training == 3 * once - stem
    found = convolution_flops(lambda: problem.gradient("mixed_vjp"))
    # The first gradient forms that of the images in vain, and so the second has one less to pass.
    assert found == 2 * training + 4 * once
    assert convolution_flops(lambda: problem.gradient("unrolled")) > found
    again = convolution_flops(lambda: problem.gradient("recomputed"))
    assert again == found + 2 * once - stem  # forward once more, and back to the first layer


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, w, b, own: F.conv2d(x, own), id="other weights"),
        pytest.param(lambda x, w, b, own: F.conv2d(x, w, padding="same"), id="named padding"),
        pytest.param(lambda x, w, b, own: F.conv2d(x[0], w), id="no batch"),
    ],
)
def test_what_it_has_no_rule_for_is_left_to_pytorch(function):
    x, w, b = draw(2, 3, 5, 5), draw(4, 3, 3, 3), draw(4)
    weights = [tensor.requires_grad_() for tensor in (w, b)]
    own = w.detach().clone().requires_grad_()
    with FixedWeights(weights):
        y = function(x, w, b, own)
    assert "_Convolution" not in type(y.grad_fn).__name__
    torch.testing.assert_close(y, function(x, w, b, own))


def test_batch_norm_in_evaluation_mode_and_autocast_are_left_to_pytorch():
    x, w, b = draw(2, 3, 5, 5), draw(3).requires_grad_(), draw(3).requires_grad_()
    kernel = draw(3, 3, 3, 3, dtype=torch.float32).requires_grad_()
    running = torch.zeros(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype)
    with FixedWeights([w, b, kernel]):
        evaluated = F.batch_norm(x, *running, w, b, training=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = F.conv2d(x.float(), kernel)
    assert "_BatchNorm" not in type(evaluated.grad_fn).__name__
    assert cast.dtype == torch.bfloat16


def test_one_value_a_channel_is_the_error_of_pytorch():
    w, b = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    with FixedWeights([w, b]), pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(torch.ones(1, 3, 1, 1), None, None, w, b, training=True)
