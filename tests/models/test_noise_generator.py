from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multirobust.errors import InputError
from multirobust.models import NoiseGenerator

both = pytest.mark.parametrize("conditioning", ["noise", "noise_and_image"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("channels", "conditioning", "count"),
    [(3, "noise", 4_183), (3, "noise_and_image", 4_243), (1, "noise", 4_101)],
)
def test_has_exactly_this_many_parameters(channels, conditioning, count):
    generator = NoiseGenerator(channels, conditioning=conditioning)
    assert sum(p.numel() for p in generator.parameters()) == count


@both
@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (4, 3, 8, 8), (2, 3, 5, 9), (2, 3, 32, 32)])
def test_returns_noise_of_the_shape_and_dtype_of_the_images(conditioning, shape):
    network = NoiseGenerator(3, conditioning=conditioning).double()
    x = torch.rand(shape, generator=seeded(), dtype=torch.float64)
    z = network.draw(x, seeded())
    assert z.shape == (*shape[:2], shape[2] + 2, shape[3] + 2)
    noise = network(z, x)
    assert noise.shape == shape
    assert noise.dtype == z.dtype == torch.float64
    assert noise.isfinite().all()


@pytest.mark.parametrize(("conditioning", "depends"), [("noise", False), ("noise_and_image", True)])
def test_depends_on_the_image_exactly_when_conditioned_on_it(conditioning, depends):
    network = NoiseGenerator(3, conditioning=conditioning)
    x = torch.rand(2, 3, 8, 8, generator=seeded())
    z = network.draw(x, seeded())
    assert torch.equal(network(z, x), network(z, 1 - x)) is not depends


@both
def test_with_its_last_layer_at_zero_it_returns_the_cropped_noise(conditioning):
    network = NoiseGenerator(3, conditioning=conditioning)
    nn.init.zeros_(network.layers[-1].weight)
    x = torch.rand(2, 3, 6, 7, generator=seeded())
    z = network.draw(x, seeded())
    assert torch.equal(network(z, x), z[:, :, 1:7, 1:8])


def test_equals_the_published_network_written_out():
    network = NoiseGenerator(3, conditioning="noise")
    z = torch.randn(2, 3, 10, 10, generator=seeded())
    hidden = z
    for index, padding in ((0, 0), (2, 0), (4, 0)):
        layer = network.layers[index]
        hidden = F.leaky_relu(F.conv2d(hidden, layer.weight, layer.bias, padding=padding), 0.01)
    last = network.layers[6]
    expected = F.conv2d(hidden, last.weight, last.bias) + z[..., 1:-1, 1:-1]
    torch.testing.assert_close(network(z, torch.zeros(2, 3, 8, 8)), expected)


@both
@pytest.mark.parametrize("depth", [2, 3])
def test_each_3x3_convolution_asks_for_one_more_pixel_of_noise(conditioning, depth):
    network = NoiseGenerator(3, conditioning=conditioning, width=5, depth=depth)
    x = torch.rand(2, 3, 8, 6, generator=seeded())
    z = network.draw(x, seeded())
    assert z.shape == (2, 3, 8 + 2 * depth, 6 + 2 * depth)
    noise = network(z, x)
    assert noise.shape == x.shape
    moved = z.clone()
    moved[:, :, 0, 0] += 1  # the corner of one window alone
    changed = (network(moved, x) != noise).any(dim=1)
    assert changed[:, 0, 0].all()
    assert changed.sum() == len(x)
    kernels = [layer.kernel_size for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert kernels == [(1, 1)] + [(3, 3)] * depth + [(1, 1), (1, 1)]


def test_an_image_too_small_for_the_depth_is_one_clear_error():
    network, x = NoiseGenerator(3, depth=3), torch.zeros(2, 3, 3, 5)
    with pytest.raises(InputError, match=r"at least 4 pixels high and wide.*smaller depth"):
        network(network.draw(x), x)


@both
def test_weights_are_drawn_as_published_from_the_seed_alone(conditioning):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = NoiseGenerator(3, conditioning=conditioning, width=64, seed=3)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        same = NoiseGenerator(3, conditioning=conditioning, width=64, seed=3)
        assert torch.equal(torch.get_rng_state(), before)
    other = NoiseGenerator(3, conditioning=conditioning, width=64, seed=4)
    for layer, twin, stranger in zip(network.layers, same.layers, other.layers, strict=True):
        if isinstance(layer, nn.Conv2d):
            n = layer.kernel_size[0] ** 2 * layer.out_channels
            assert layer.weight.std().item() == pytest.approx((2 / n) ** 0.5, rel=0.2)
            assert torch.count_nonzero(layer.bias) == 0
            assert torch.equal(layer.weight, twin.weight)
            assert not torch.equal(layer.weight, stranger.weight)


def test_noise_is_standard_normal_and_decided_by_the_generator():
    network = NoiseGenerator(3)
    x = torch.zeros(64, 3, 30, 30)
    z = network.draw(x, seeded(7))
    assert z.mean().abs() < 0.01
    assert abs(z.std() - 1) < 0.01
    assert torch.equal(z, network.draw(x, seeded(7)))
    assert not torch.equal(z, network.draw(x, seeded(8)))
    assert torch.equal(network.draw(x), network.draw(x))


def test_drawing_without_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    NoiseGenerator(3).draw(torch.zeros(1, 3, 4, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_of_one_pixel_is_fine_without_reflection_only():
    x = torch.zeros(2, 3, 1, 4)
    plain, reflecting = (NoiseGenerator(3, conditioning=c) for c in ("noise", "noise_and_image"))
    assert plain(plain.draw(x), x).shape == x.shape
    with pytest.raises(InputError, match=r"at least 2 pixels high and wide.*got 1 x 4"):
        reflecting(reflecting.draw(x), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditioning": "image"}, "Unknown conditioning: 'image'.*Known: noise, noise_and_image"),
        ({"channels": 0}, "channels must be an integer of at least 1, got 0"),
        ({"width": 0}, "width must be an integer of at least 1, got 0"),
        ({"depth": 0}, "depth must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, message):
    with pytest.raises(InputError, match=message):
        NoiseGenerator(**arguments)


@pytest.mark.parametrize(
    ("z_shape", "x_shape", "message"),
    [
        ((2, 3, 8, 8), (2, 3, 8, 8), r"z must have shape \(2, 3, 10, 10\)"),
        ((1, 3, 10, 10), (2, 3, 8, 8), r"z must have shape \(2, 3, 10, 10\)"),
        ((2, 1, 10, 10), (2, 1, 8, 8), r"x must be images of shape \(b, 3, h, w\)"),
        ((3, 10, 10), (3, 8, 8), r"x must be images of shape \(b, 3, h, w\)"),
    ],
)
def test_tensors_of_the_wrong_shape_are_one_clear_error(z_shape, x_shape, message):
    with pytest.raises(InputError, match=message):
        NoiseGenerator(3)(torch.zeros(z_shape), torch.zeros(x_shape))


def test_repr_shows_channels_and_conditioning():
    assert "channels=1, conditioning='noise'" in repr(NoiseGenerator(1, conditioning="noise"))
