"""Distance, steepest ascent and random starts of the three balls."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from strategies_threats import pairs, threats

from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf
from oracles import distance_in_float64

BALLS = (Linf(0.1), L2(0.6), L1(1.5))
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}

of_every_norm = pytest.mark.parametrize("threat", BALLS, ids=lambda threat: threat.norm)


def gaussian(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def x():
    return torch.rand((4, 3, 8, 8), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("kind", [Linf, L2, L1])
@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_a_radius_that_is_not_positive_and_finite_is_refused(kind, radius):
    with pytest.raises(InputError, match="radius must be a positive finite number"):
        kind(radius)


@pytest.mark.parametrize("radius", [1.0001, 8.0, 255.0])
def test_an_linf_radius_beyond_the_pixel_box_is_of_the_wrong_scale(radius):
    assert Linf(1.0).radius == 1.0
    with pytest.raises(InputError, match=rf"at most 1, .* write {radius:g} / 255, which is"):
        Linf(radius)


@of_every_norm
def test_distance_is_the_norm_of_each_image(threat, x):
    x_adv = x + gaussian(x.shape)
    expected = distance_in_float64(threat.norm, x_adv, x)
    torch.testing.assert_close(threat.distance(x_adv, x).double(), expected, rtol=1e-6, atol=0)
    half = threat.distance(x_adv.half(), x.half())
    assert half.dtype == torch.float32
    assert threat.distance(x_adv.double(), x.double()).dtype == torch.float64


@of_every_norm
def test_ascent_attains_the_dual_norm(threat):
    if threat.norm == "l1":
        threat = L1(1.5, density=1e-9)
    gradient = gaussian((4, 3, 8, 8), dtype=torch.float64)
    inside = torch.full_like(gradient, 0.5)
    direction = threat.ascent_direction(gradient, inside)
    gain = (direction * gradient).flatten(1).sum(1)
    dual = torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[threat.norm], dim=1)
    torch.testing.assert_close(gain, dual)
    torch.testing.assert_close(
        threat.distance(inside + direction, inside), torch.ones(4, dtype=torch.float64)
    )


@of_every_norm
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0, 1e30, 1e38])
def test_ascent_has_unit_norm_at_any_scale_of_the_gradient(threat, scale):
    gradient = gaussian((3, 1, 4, 4)).clamp(-2, 2) * scale
    direction = threat.ascent_direction(gradient, torch.full_like(gradient, 0.5))
    norm = threat.distance(direction, torch.zeros_like(direction))
    torch.testing.assert_close(norm, torch.ones(3), rtol=1e-5, atol=0)


@of_every_norm
def test_ascent_is_zero_for_an_image_without_gradient(threat):
    gradient = gaussian((3, 1, 4, 4))
    gradient[1] = 0
    direction = threat.ascent_direction(gradient, torch.full_like(gradient, 0.5))
    assert direction[1].abs().max() == 0
    assert (direction[::2].abs().flatten(1).amax(1) > 0).all()


@of_every_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ascent_and_sample_of_half_precision_are_float32(threat, dtype, x):
    assert threat.ascent_direction(gaussian(x.shape).to(dtype), x.to(dtype)).dtype == torch.float32
    start = threat.sample(x.to(dtype))
    assert start.dtype == torch.float32
    assert (
        distance_in_float64(threat.norm, start, x.to(dtype)) <= threat.radius * (1 + 1e-6)
    ).all()


@pytest.mark.parametrize(("density", "count"), [(1e-6, 1), (0.01, 2), (0.5, 96), (1.0, 192)])
def test_l1_ascent_moves_exactly_the_top_share_in_equal_steps(density, count):
    gradient = gaussian((4, 3, 8, 8))
    direction = L1(1.0, density=density).ascent_direction(gradient, torch.full((4, 3, 8, 8), 0.5))
    moved = direction.flatten(1) != 0
    assert (moved.sum(1) == count).all()
    torch.testing.assert_close(
        direction.flatten(1)[moved].abs(), torch.full((4 * count,), 1 / count)
    )
    chosen = gradient.flatten(1).abs().topk(count, dim=1).indices
    assert moved.gather(1, chosen).all()
    assert (direction * gradient >= 0).all()


def test_l1_ascent_skips_pixels_that_the_box_stops():
    gradient = torch.tensor([[[[9.0, -8.0, 7.0, -6.0, 5.0]]]])
    pixels = torch.tensor([[[[1.0, 0.0, 0.0, 1.0, 0.5]]]])
    direction = L1(1.0, density=0.4).ascent_direction(gradient, pixels)
    assert direction.flatten().tolist() == [0.0, 0.0, 0.5, -0.5, 0.0]


def test_l1_ascent_shares_the_step_when_fewer_coordinates_can_move():
    gradient = torch.tensor([[[[9.0, 8.0, 7.0, 0.0]]]])
    pixels = torch.tensor([[[[1.0, 1.0, 0.5, 0.5]]]])
    direction = L1(1.0, density=1.0).ascent_direction(gradient, pixels)
    assert direction.flatten().tolist() == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, math.nan])
def test_a_density_outside_its_range_is_refused(density):
    with pytest.raises(InputError, match=r"density must be a share of the coordinates in \(0, 1\]"):
        L1(1.0, density=density)


@given(threat=threats, pair=pairs())
@settings(max_examples=100, deadline=None)
def test_samples_lie_in_the_ball_and_the_box(threat, pair):
    x = pair[1]
    start = threat.sample(x, torch.Generator().manual_seed(0))
    assert start.min() >= 0
    assert start.max() <= 1
    assert (distance_in_float64(threat.norm, start, x) <= threat.radius * (1 + 1e-6)).all()


@of_every_norm
def test_samples_are_uniform_in_the_ball(threat):
    """(distance / radius)^n is uniform in [0, 1], and no direction or sign is preferred."""
    count, n = 20_000, 6
    x = torch.full((count, 1, 2, 3), 0.5, dtype=torch.float64)
    threat = type(threat)(0.4)
    start = threat.sample(x, torch.Generator().manual_seed(0))
    share = (threat.distance(start, x) / threat.radius) ** n
    for power in (1, 2, 3):
        assert share.pow(power).mean().item() == pytest.approx(1 / (power + 1), abs=0.01)
    delta = (start - x).flatten(1)
    spread = delta.std(0)
    assert (delta.mean(0).abs() < 4 * spread / count**0.5).all()
    torch.testing.assert_close(spread, spread.mean().expand(n), rtol=0.03, atol=0)
    covariance = torch.corrcoef(delta.T) - torch.eye(n, dtype=torch.float64)
    assert covariance.abs().max() < 0.03


@of_every_norm
def test_the_same_generator_gives_the_same_start(threat, x):
    first, second, other = (
        threat.sample(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(threat.sample(x), threat.sample(x, torch.Generator().manual_seed(0)))


def test_a_generator_on_another_device_is_refused(x):
    with pytest.raises(InputError, match="generator must be on the device of the images"):
        L2(1.0).sample(x.to("meta"), torch.Generator())


def test_a_threat_is_a_value():
    assert L1(2.5) == L1(2.5, density=0.01)
    assert len({Linf(0.1), Linf(0.1), L2(0.1)}) == 2
    assert repr(Linf(0.5)) == "Linf(radius=0.5)"
    assert repr(L1(2.5)) == "L1(radius=2.5, density=0.01)"
