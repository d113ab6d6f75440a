"""The projections where nobody wants a derivative: the same points, by compiled loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from strategies_threats import pairs, threats
from torch.autograd import forward_ad

from multirobust.attacks.apgd_rules import Sparse
from multirobust.threats import L1, L2, native, projection
from multirobust.threats.native import is_native, is_plain
from multirobust.threats.projection import project_l1, project_l2, project_linf
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


@pytest.mark.parametrize("project", [project_l2, project_l1])
@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("radius", [1e-2, 0.5, 5.0, 40.0])
def test_the_loops_find_the_points_of_float64(project, scale, radius):
    x_adv, x = noisy((8, 3, 16, 16), scale)
    x[0] = (x[0] > 0.5).float()
    radii = torch.linspace(0.5, 2, 8)[:, None, None, None] * radius
    exact = project(x_adv.double(), x.double(), radii)
    with torch.no_grad():
        assert is_native(x_adv, x)
        found = project(x_adv, x, radii)
        one = project(x_adv, x, radius)
        assert torch.equal(project(found, x, radii), found)
    far = max(1.0, float((x_adv - x).abs().max()))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1.5e-7 * far)
    torch.testing.assert_close(one[0], project(x_adv[:1], x[:1], radius)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("project", [project_l2, project_l1])
def test_bits_depend_on_no_other_row_and_not_on_the_threads(project, monkeypatch):
    x_adv, x = noisy((9, 3, 16, 16), 0.5)
    radii = torch.linspace(0.2, 9, 9)[:, None, None, None]
    with torch.no_grad():
        together, shared = project(x_adv, x, radii), project(x_adv, x, 2.0)
        alone = torch.cat([project(x_adv[i : i + 1], x[i : i + 1], radii[i]) for i in range(9)])
        turned = project(x_adv.transpose(2, 3), x.transpose(2, 3), radii).transpose(2, 3)
        monkeypatch.setattr(native, "_PIXELS_A_THREAD", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        assert torch.equal(project(x_adv, x, radii), together)
        assert torch.equal(project(x_adv, x, 2.0), shared)
    assert torch.equal(alone, together)
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("project", [project_l2, project_l1])
def test_without_numba_pytorch_finds_the_same_points(project, monkeypatch):
    x_adv, x = noisy((6, 3, 8, 8), 0.5)
    with torch.no_grad():
        expected = project(x_adv, x, 1.5)
        monkeypatch.setattr(native, "_loops", lambda: None)
        assert not is_native(x_adv, x)
        torch.testing.assert_close(project(x_adv, x, 1.5), expected, rtol=0, atol=1.2e-7)


def test_float64_and_derivatives_are_left_to_pytorch(monkeypatch):
    x_adv, x = noisy((2, 1, 4, 4), 1.0)
    monkeypatch.setattr(projection, "native_projection", None)
    project_l1(x_adv, x, 0.5)
    with torch.no_grad():
        project_l1(x_adv.double(), x.double(), 0.5)
        with pytest.raises(TypeError):
            project_l1(x_adv, x, 0.5)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1e4])
def test_in_linf_the_loop_has_the_bits_of_pytorch(scale, monkeypatch):
    x_adv, x = noisy((6, 3, 8, 8), scale)
    x_adv[0, 0, 0, 0] = torch.nan
    radii = torch.tensor([1e-4, 0.03, 0.1, 0.5, 1.0, 0.2])[:, None, None, None]
    with torch.no_grad():
        each, one = project_linf(x_adv, x, radii), project_linf(x_adv, x, 8 / 255)
        monkeypatch.setattr(native, "_loops", lambda: None)
        assert torch.equal(each.nan_to_num(7), project_linf(x_adv, x, radii).nan_to_num(7))
        assert torch.equal(one.nan_to_num(7), project_linf(x_adv, x, 8 / 255).nan_to_num(7))
    assert each.isnan().sum() == 1


@pytest.mark.parametrize("density", [1e-4, 0.01, 0.3, 1.0])
def test_the_steepest_step_in_l1_is_that_of_pytorch(density, monkeypatch):
    g, x = noisy((7, 3, 8, 8), 1.0)
    g[1], g[2, 0] = 0, 0
    g[3] *= 1e-30
    threat = L1(2.0, density=density)
    with torch.no_grad():
        found = threat.ascent_direction(g, x)
        monkeypatch.setattr(native, "_loops", lambda: None)
        torch.testing.assert_close(found, threat.ascent_direction(g, x), rtol=2e-7, atol=0)
    assert not found[1].any()


def test_of_equal_gradients_as_many_move_as_there_may():
    g, x = torch.ones(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)
    g[1, 0, 3] = 2.0
    with torch.no_grad():
        step = L1(1.0, density=6 / 16).ascent_direction(g, x).flatten(1)
    torch.testing.assert_close(step[0], torch.tensor([1 / 6] * 6 + [0.0] * 10))
    torch.testing.assert_close(step[1], torch.tensor([1 / 6] * 2 + [0.0] * 10 + [1 / 6] * 4))


def test_pixels_that_differ_are_counted():
    a, x = noisy((5, 3, 8, 8), 1.0)
    a[0], a[1, :, 2] = x[0], x[1, :, 2]
    with torch.no_grad():
        counts = native.differing(a, x)
    assert counts.tolist() == (a != x).flatten(1).sum(1).tolist()
    assert counts[:2].tolist() == [0.0, 168.0]


def test_a_sparse_step_of_apgd_is_that_of_pytorch(monkeypatch):
    g, x = noisy((9, 3, 8, 8), 1.0)
    g[0], g[1, 0], g[2] = 0, 0, g[2].sign()
    g[3] *= 1e-38  # some scores are no normal numbers
    step = torch.linspace(0.1, 2, 9)
    moved = torch.tensor([3.0, 150.0, 20.0, 0.2, 7.7, 192.0, 999.0, 30.0, 1.0])
    state = {"iterate": x, "gradient": g, "step": step, "moved": moved}
    with torch.no_grad():
        found = Sparse()._moved(state)
        monkeypatch.setattr(native, "_loops", lambda: None)
        torch.testing.assert_close(found, Sparse()._moved(state), rtol=0, atol=2e-7)
    assert torch.equal(found[:2], x[:2])  # too few pixels have a gradient
    assert [(found[i] != x[i]).sum().item() for i in (4, 7, 8)] == [8, 30, 1]


@pytest.mark.parametrize("threat", [L2(0.5), L1(2.0)], ids=lambda t: t.norm)
def test_what_is_not_finite_is_treated_as_with_gradient(threat):
    x_adv, x = noisy((5, 1, 4, 4), 1.0)
    x_adv[1, 0, 0, 0] = torch.nan
    x_adv[2] = 1e30
    x_adv[3] *= 1e-30
    expected = threat.project(x_adv, x)
    with torch.no_grad():
        projected = threat.project(x_adv, x)
    rows = [0, 1, 3, 4]
    torch.testing.assert_close(projected[rows], expected[rows], rtol=0, atol=1e-6, equal_nan=True)
    assert projected[1].isnan().any()
    moved, room = projected[2] - x[2], 1 - x[2]  # all pixels alike, as far as there is room
    torch.testing.assert_close(moved, room.minimum(moved.max()), rtol=0, atol=1e-6)
    size = torch.linalg.vector_norm(moved.flatten(), 1 if threat.norm == "l1" else 2)
    assert abs(size - threat.radius) < 1e-5


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
