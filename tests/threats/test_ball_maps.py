"""Maps into the ball against their formulas in numpy, differences, and what each promises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies_threats import pairs, threats

from linear_oracles import random_images, random_tensor
from multirobust.config import DefenseConfig
from multirobust.errors import InputError
from multirobust.threats import (
    BALL_MAPS,
    L1,
    L2,
    HardProjection,
    Linf,
    SmoothMap,
    StraightThrough,
    Threat,
)
from oracles import distance_in_float64

PAPER = (Linf(8 / 255), L2(128 / 255), L1(2000 / 255))
BALLS = (Linf(0.1), L2(0.6), L1(1.5))
LIVING = {name: found for name, found in BALL_MAPS.items() if name != "project"}

of_every_norm = pytest.mark.parametrize("threat", BALLS, ids=lambda threat: threat.norm)
of_every_paper_norm = pytest.mark.parametrize("threat", PAPER, ids=lambda threat: threat.norm)
every_map = pytest.mark.parametrize("name", BALL_MAPS)
every_living_map = pytest.mark.parametrize("name", LIVING)
in_both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def bordered(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """Images of which a third of the pixels is exactly 0 or 1."""
    return (1.5 * random_images(*shape, seed=seed, dtype=dtype) - 0.25).clamp(0, 1)


def pulled_back(to_ball, threat, noise, x) -> torch.Tensor:
    """Return what a gradient that is nowhere zero becomes at the noise."""
    leaf = noise.clone().requires_grad_()
    images = to_ball(threat, leaf, x)
    weights = random_tensor(*x.shape, seed=9, dtype=images.dtype)
    return torch.autograd.grad(images, leaf, weights)[0]


@given(threat=threats, pair=pairs())
@settings(max_examples=40, deadline=None)
def test_every_map_stays_within_radius_and_box_and_is_finite(threat, pair):
    x_adv, x = pair
    noise = x_adv - x
    for to_ball in BALL_MAPS.values():
        images = to_ball(threat, noise, x)
        assert images.min() >= 0
        assert images.max() <= 1
        distance = distance_in_float64(threat.norm, images, x)
        assert (distance <= threat.radius * (1 + 1e-6)).all(), to_ball
        assert pulled_back(to_ball, threat, noise, x).isfinite().all(), to_ball


@every_map
@of_every_paper_norm
@in_both_precisions
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_images_of_the_size_of_cifar_stay_within_radius_and_box(name, threat, dtype, scale):
    x = bordered(4, 3, 32, 32, dtype=dtype)
    noise = scale * random_tensor(4, 3, 32, 32, seed=3, dtype=dtype)
    images = BALL_MAPS[name](threat, noise, x)
    assert images.dtype == dtype
    assert images.min() >= 0
    assert images.max() <= 1
    distance = distance_in_float64(threat.norm, images, x)
    assert (distance <= threat.radius * (1 + 1e-6)).all()
    if scale == 10:
        assert (distance >= 0.97 * threat.radius).all()


@of_every_norm
def test_the_hard_projection_is_that_of_the_threat_bit_for_bit(threat):
    x, noise = bordered(3, 1, 6, 6), random_tensor(3, 1, 6, 6, seed=3)
    assert torch.equal(HardProjection()(threat, noise, x), threat.project(x + noise, x))


def test_in_linf_the_smooth_map_is_the_scaled_tanh_between_the_ends():
    x, noise = bordered(2, 1, 5, 5, dtype=torch.float64), random_tensor(2, 1, 5, 5, seed=3).double()
    pixels, n = x.numpy(), noise.numpy()
    low, high = np.maximum(-0.1, -pixels), np.minimum(0.1, 1 - pixels)
    middle, half = (low + high) / 2, (high - low) / 2
    expected = pixels + middle + half * np.tanh(n - middle / half)
    np.testing.assert_allclose(SmoothMap()(Linf(0.1), noise, x), expected, atol=1e-14)


def test_in_l2_the_smooth_map_keeps_the_direction_where_the_box_is_far():
    x = torch.full((1, 1, 6, 6), 0.5, dtype=torch.float64)
    for scale in (1e-3, 1.0, 20.0):
        noise = scale * random_tensor(1, 1, 6, 6, seed=3).double()
        delta = SmoothMap()(L2(0.02), noise, x) - x
        length = noise.norm() / 6  # in units of the radius
        expected = 0.02 * length / (1 + length**2).sqrt() * noise / noise.norm()
        torch.testing.assert_close(delta, expected, rtol=1e-8, atol=1e-14)


def test_in_l1_the_smooth_map_is_a_softmax_over_the_corners_where_the_box_is_far():
    x = torch.full((1, 1, 6, 6), 0.5, dtype=torch.float64)
    for scale in (1e-3, 1.0, 3.0):
        noise = scale * random_tensor(1, 1, 6, 6, seed=3).double()
        delta = SmoothMap()(L1(1e-6), noise, x) - x
        shares = torch.cat((noise.flatten(), -noise.flatten())).softmax(0)
        expected = 1e-6 * (shares[:36] - shares[36:]).reshape(x.shape)
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-15)


@of_every_norm
def test_small_noise_moves_a_gray_image_in_proportion(threat):
    x = torch.full((1, 1, 6, 6), 0.5, dtype=torch.float64)
    noise = 1e-3 * random_tensor(1, 1, 6, 6, seed=3).double()
    threat = type(threat)(threat.radius / 100)  # the box is far
    unit = {"linf": threat.radius, "l2": threat.radius / 6, "l1": threat.radius / 36}[threat.norm]
    delta = SmoothMap()(threat, noise, x) - x
    still = SmoothMap()(threat, torch.zeros_like(noise), x) - x
    assert still.abs().max() < 0.02 * unit
    torch.testing.assert_close(delta - still, unit * noise, rtol=0.02, atol=0.0)


@of_every_norm
@pytest.mark.parametrize("border", [0.0, 1.0])
def test_a_pixel_on_the_border_of_the_box_moves_inward_and_more_for_noise_inward(threat, border):
    x = torch.full((9, 1, 4, 4), border)
    noise = torch.zeros_like(x)
    noise[:, 0, 1, 2] = torch.linspace(-4, 4, 9) * (1 - 2 * border)
    moved = (SmoothMap()(threat, noise, x) - x).abs()[:, 0, 1, 2]
    assert (moved > 0).all()
    assert (moved.diff() > 0).all()


@every_living_map
@of_every_paper_norm
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_gradient_reaches_every_output_of_the_generator(name, threat, scale):
    x = bordered(4, 3, 32, 32)
    noise = scale * random_tensor(4, 3, 32, 32, seed=3)
    assert (pulled_back(LIVING[name], threat, noise, x) != 0).all()


@pytest.mark.parametrize(
    ("threat", "most"), [(PAPER[0], 0.026), (PAPER[2], 0.01)], ids=["linf", "l1"]
)
def test_the_hard_projection_lets_hardly_any_gradient_through(threat, most):
    """In linf a pixel lives with probability P(|z| < 8 / 255) = 0.025 at most."""
    x, noise = random_images(8, 3, 32, 32), random_tensor(8, 3, 32, 32, seed=3)
    live = (pulled_back(HardProjection(), threat, noise, x) != 0).double().mean()
    assert 0 < live < most
    if threat.norm == "linf":
        bound = math.erf(threat.radius / math.sqrt(2))
        free = (noise.abs() < threat.radius) & (x + noise > 0) & (x + noise < 1)
        assert live.item() == pytest.approx(free.double().mean().item())
        assert live <= 1.05 * bound


@of_every_norm
def test_far_out_the_gradient_fades_but_does_not_vanish(threat):
    x = bordered(1, 1, 4, 4)
    noise = torch.zeros_like(x)
    noise[0, 0, 0] = torch.tensor([30.0, -30.0, 20.0, -20.0])
    back = pulled_back(SmoothMap(), threat, noise, x)
    assert (back != 0).all()
    assert back.isfinite().all()


@of_every_norm
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_first_and_second_derivatives_of_the_smooth_map_equal_central_differences(threat, scale):
    x = bordered(2, 1, 3, 3, dtype=torch.float64)
    assert (x == 0).any()
    noise = (scale * random_tensor(2, 1, 3, 3, seed=3).double()).requires_grad_()
    with torch.random.fork_rng(devices=[]):  # gradgradcheck draws its directions there
        assert torch.autograd.gradcheck(lambda n: SmoothMap()(threat, n, x), noise)
        assert torch.autograd.gradgradcheck(lambda n: SmoothMap()(threat, n, x), noise)


@of_every_norm
def test_straight_through_is_the_projection_with_the_derivative_of_another_map(threat):
    x, noise = bordered(3, 1, 6, 6), random_tensor(3, 1, 6, 6, seed=3)
    with torch.no_grad():
        expected = threat.project(x + noise, x)
    for backward in ("identity", "smooth"):
        assert torch.equal(StraightThrough(backward)(threat, noise, x), expected)
    weights = random_tensor(*x.shape, seed=9)
    assert torch.equal(pulled_back(StraightThrough(), threat, noise, x), weights)
    smooth = pulled_back(StraightThrough("smooth"), threat, noise, x)
    assert torch.equal(smooth, pulled_back(SmoothMap(), threat, noise, x))


@every_map
@of_every_norm
def test_a_batch_is_its_images_one_by_one(name, threat):
    x, noise = bordered(5, 1, 4, 4), random_tensor(5, 1, 4, 4, seed=3)
    to_ball = BALL_MAPS[name]
    rows = [to_ball(threat, noise[[k]], x[[k]]) for k in range(5)]
    torch.testing.assert_close(to_ball(threat, noise, x), torch.cat(rows), rtol=0, atol=1e-7)


@every_map
@of_every_norm
def test_half_precision_noise_is_raised_to_float32(name, threat):
    x, noise = bordered(2, 1, 4, 4), random_tensor(2, 1, 4, 4, seed=3).bfloat16()
    assert BALL_MAPS[name](threat, noise, x).dtype == torch.float32


def test_the_names_are_those_of_the_recipe():
    names = get_args(DefenseConfig.model_fields["noise_map"].annotation)
    assert tuple(BALL_MAPS) == names
    assert BALL_MAPS[DefenseConfig().noise_map] == HardProjection()


def test_a_threat_without_a_smooth_map_is_one_clear_error():
    @dataclass(frozen=True)
    class Other(Threat):
        norm = "other"
        distance = project = ascent_direction = sample = None

    x = random_images(1, 1, 3, 3)
    with pytest.raises(InputError, match=r"SmoothMap: threat must be one of Linf, L2, L1, got"):
        SmoothMap()(Other(0.1), torch.zeros_like(x), x)


def test_an_unknown_backward_is_one_clear_error():
    with pytest.raises(InputError, match=r"Unknown backward: 'smoth'\. Did you mean 'smooth'"):
        StraightThrough("smoth")


def test_maps_are_values():
    assert StraightThrough("smooth") == StraightThrough(backward="smooth") != StraightThrough()
    assert repr(SmoothMap()) == "SmoothMap()"
    assert len({SmoothMap(), SmoothMap(), HardProjection()}) == 2


def test_maps_leave_their_arguments_alone():
    x, noise = bordered(2, 1, 4, 4), random_tensor(2, 1, 4, 4, seed=3)
    kept = x.clone(), noise.clone()
    for to_ball in BALL_MAPS.values():
        for threat in BALLS:
            to_ball(threat, noise, x)
    assert torch.equal(x, kept[0])
    assert torch.equal(noise, kept[1])
