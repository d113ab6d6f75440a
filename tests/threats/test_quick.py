"""The projections where nobody wants a derivative: the same points, by a shorter way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from strategies_threats import pairs, threats
from torch.autograd import forward_ad

from multirobust.threats import L1, L2
from multirobust.threats.projection import project_l2
from multirobust.threats.quick import is_plain, quick_l2
from oracles import distance_in_float64, project_by_bisection


def noisy(shape, scale, seed=0, dtype=torch.float32):
    """Return (x_adv, x), with a third of the pixels of x on the border of the box."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.5 * torch.rand(shape, generator=generator, dtype=dtype) - 0.25).clamp(0, 1)
    return x + scale * torch.randn(shape, generator=generator, dtype=dtype), x


@given(threat=threats, pair=pairs())
@settings(max_examples=100, deadline=None)
def test_without_gradient_the_point_is_that_of_the_bisection(threat, pair):
    x_adv, x = pair
    exact_difference = x.double() + (x_adv - x).double()
    expected = project_by_bisection(threat.norm, exact_difference, x, threat.radius)
    with torch.no_grad():
        projected = threat.project(x_adv, x)
        assert torch.equal(threat.project(projected, x), projected)
    assert projected.min() >= 0
    assert projected.max() <= 1
    distance = distance_in_float64(threat.norm, projected, x)
    assert (distance <= threat.radius * (1 + 1e-6)).all()
    error = torch.linalg.vector_norm(projected.flatten(1).double() - expected, dim=1)
    grid = 6e-8 * expected.shape[1] ** 0.5
    assert (error <= grid + 1e-5 * threat.radius).all()


@given(threat=threats, pair=pairs())
@settings(max_examples=60, deadline=None)
def test_in_float64_too(threat, pair):
    x_adv, x = (images.double() for images in pair)
    expected = project_by_bisection(threat.norm, x_adv, x, threat.radius)
    with torch.no_grad():
        projected = threat.project(x_adv, x).flatten(1)
    far = 1 + (x_adv - x).abs().max()
    torch.testing.assert_close(projected, expected, rtol=0, atol=float(2e-13 * far))


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("radius", [1e-2, 0.5, 5.0])
def test_the_quick_solution_is_one_in_nearly_all_cases(scale, radius):
    """Else the long way is taken, and nothing is quick."""
    x_adv, x = (images.flatten(1) for images in noisy((16, 3, 16, 16), scale))
    r = x.new_full((1, 1), radius)
    inside = torch.linalg.vector_norm(x_adv.clamp(0, 1) - x, dim=1, keepdim=True) <= r
    delta = quick_l2(x_adv - x, x, r, inside)
    length = torch.linalg.vector_norm(delta, dim=1, dtype=torch.float64)
    off = (length / radius - 1).abs() > 4.8e-7
    assert not (off & ~inside.squeeze(1)).any()


@pytest.mark.parametrize("threat", [L2(0.5), L1(2.0)], ids=lambda t: t.norm)
def test_what_is_not_finite_is_treated_as_with_gradient(threat):
    x_adv, x = noisy((5, 1, 4, 4), 1.0)
    x_adv[1, 0, 0, 0] = torch.nan
    x_adv[2] = 1e30
    x_adv[3] *= 1e-30
    expected = threat.project(x_adv, x)
    with torch.no_grad():
        projected = threat.project(x_adv, x)
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-6, equal_nan=True)
    assert projected[1].isnan().any()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_a_forward_mode_derivative_is_not_lost_without_gradient():
    x_adv, x = noisy((2, 1, 4, 4), 1.0, dtype=torch.float64)
    tangent = torch.ones_like(x)
    _, expected = torch.func.jvp(lambda z: project_l2(z, x, 0.5), (x_adv,), (tangent,))
    with torch.no_grad(), forward_ad.dual_level():
        dual = project_l2(forward_ad.make_dual(x_adv, tangent), x, 0.5)
        found = forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(found, expected)


def test_under_vmap_nothing_is_asked():
    x_adv, x = noisy((4, 2, 1, 4, 4), 1.0)
    with torch.no_grad():
        mapped = torch.func.vmap(lambda z, y: project_l2(z, y, 0.5))(x_adv, x)
        assert is_plain(x_adv, x)
    assert not is_plain(x_adv)
    torch.testing.assert_close(mapped[1], project_l2(x_adv[1], x[1], 0.5))
