"""The projections against a float64 bisection, other published projections, and their own laws."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies_threats import pairs, threats
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from multirobust.threats import L1, L2, Linf, roots
from multirobust.threats.projection import project_l1, project_l2, project_linf
from oracles import distance_in_float64, project_by_bisection

BALLS = (Linf(0.1), L2(0.6), L1(1.5))
PROJECTIONS = {"linf": project_linf, "l2": project_l2, "l1": project_l1}

forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
"""PyTorch compiles a few of its own formulas when forward-mode derivatives are first used."""

of_every_norm = pytest.mark.parametrize("threat", BALLS, ids=lambda threat: threat.norm)


def uniform(shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype)


def displaced(shape, scale, seed=0, dtype=torch.float32):
    """Return (x_adv, x), with a third of the pixels of x on the border of the box."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.5 * torch.rand(shape, generator=generator, dtype=dtype) - 0.25).clamp(0, 1)
    return x + scale * torch.randn(shape, generator=generator, dtype=dtype), x


def assert_allowed(threat, projected, x):
    assert projected.min() >= 0
    assert projected.max() <= 1
    distance = distance_in_float64(threat.norm, projected, x)
    assert (distance <= threat.radius * (1 + 1e-6)).all()


@given(threat=threats, pair=pairs())
@settings(max_examples=150, deadline=None)
def test_the_result_is_within_the_radius_and_the_box(threat, pair):
    x_adv, x = pair
    assert_allowed(threat, threat.project(x_adv, x), x)


@given(threat=threats, pair=pairs())
@settings(max_examples=100, deadline=None)
def test_projecting_twice_changes_nothing(threat, pair):
    x_adv, x = pair
    once = threat.project(x_adv, x)
    assert torch.equal(threat.project(once, x), once)


@given(threat=threats, pair=pairs(), seed=st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_no_allowed_point_lies_at_an_acute_angle(threat, pair, seed):
    """<z - p, q - p> <= 0 for every allowed q characterizes the projection p of z."""
    z, x = (images.double() for images in pair)
    p = threat.project(z, x)
    generator = torch.Generator().manual_seed(seed)
    far = x + 3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    near = p + 0.01 * threat.radius * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    for candidate in (x, threat.sample(x, generator), far, near):
        q = torch.from_numpy(project_by_bisection(threat.norm, candidate, x, threat.radius).numpy())
        products = (z - p).flatten(1) * (q - p.flatten(1))
        assert (products.sum(1) <= 1e-9 * (1 + products.abs().sum(1))).all()


@given(threat=threats, pair=pairs())
@settings(max_examples=100, deadline=None)
def test_float64_equals_the_bisection(threat, pair):
    x_adv, x = (images.double() for images in pair)
    expected = project_by_bisection(threat.norm, x_adv, x, threat.radius)
    boxed = x_adv.clamp(0, 1)  # is the answer for what leaves the radius by a rounding alone
    inside = distance_in_float64(threat.norm, boxed, x) <= threat.radius * (1 + 4e-7)
    expected = torch.where(inside[:, None], boxed.flatten(1), expected)
    projected = threat.project(x_adv, x).flatten(1)
    far = 1 + (x_adv - x).abs().max()
    torch.testing.assert_close(projected, expected, rtol=0, atol=float(2e-13 * far))


@given(threat=threats, pair=pairs())
@settings(max_examples=100, deadline=None)
def test_float32_equals_the_bisection_up_to_the_grid_of_the_pixels(threat, pair):
    x_adv, x = pair
    exact_difference = x.double() + (x_adv - x).double()
    expected = project_by_bisection(threat.norm, exact_difference, x, threat.radius)
    projected = threat.project(x_adv, x).flatten(1).double()
    error = torch.linalg.vector_norm(projected - expected, dim=1)
    grid = 6e-8 * expected.shape[1] ** 0.5
    assert (error <= grid + 1e-5 * threat.radius).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("radius", [1e-2, 0.5, 10.0, 100.0])
def test_weights_over_twenty_decades_are_projected_exactly(norm, radius):
    generator = torch.Generator().manual_seed(0)
    shape = (3, 3, 16, 16)
    sizes = 10 ** (20 * torch.rand(shape, generator=generator) - 14)
    w = sizes * torch.randn(shape, generator=generator).sign()
    x = torch.rand(shape, generator=generator) * 10 ** (-9 * torch.rand(shape, generator=generator))
    x_adv = x + w
    expected = project_by_bisection(norm, x.double() + (x_adv - x).double(), x, radius)
    projected = PROJECTIONS[norm](x_adv, x, radius).flatten(1).double()
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-6 + 1e-7 * radius)


def test_the_sort_and_the_search_find_the_same_threshold():
    for scale, radius in ((0.1, 7.8), (1.0, 7.8), (1.0, 100.0), (30.0, 7.8)):
        x_adv, x = displaced((8, 3, 16, 16), scale, dtype=torch.float64)
        sizes, caps = (x_adv - x).abs().flatten(1), torch.where(x_adv > x, 1 - x, x).flatten(1)
        r = sizes.new_full((1, 1), radius)
        nothing = torch.zeros(8, 1, dtype=torch.bool)
        searched = roots.threshold_for_l1(sizes, caps, r, nothing)
        by_sorting = roots.threshold_by_sorting(sizes, caps, r)
        torch.testing.assert_close(by_sorting, searched, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_away_from_the_box_foolbox_gives_the_same_points(norm):
    import eagerpy
    import foolbox.attacks

    kinds = {"linf": "LinfPGD", "l2": "L2PGD", "l1": "SparseL1DescentAttack"}
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    x = 0.4 + 0.2 * torch.rand((4, 3, 8, 8), **options)
    x_adv = x + 0.05 * torch.randn(x.shape, **options)
    radius = {"linf": 0.05, "l2": 0.3, "l1": 2.0}[norm]
    attack = getattr(foolbox.attacks, kinds[norm])(steps=1)
    theirs = attack.project(eagerpy.astensor(x_adv), eagerpy.astensor(x), radius).raw
    ours = PROJECTIONS[norm](x_adv, x, radius)
    atol = 1e-4 if norm == "l1" else 1e-12  # foolbox sums l1 in float32, whatever the input
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_general_solver_finds_the_same_point(norm):
    """SLSQP on the quadratic program itself, box active, with delta = plus - minus for l1."""
    x_adv, x = displaced((3, 1, 2, 3), 0.6, seed=5, dtype=torch.float64)
    radius = {"l2": 0.5, "l1": 0.8}[norm]
    ours = PROJECTIONS[norm](x_adv, x, radius).flatten(1).numpy()
    for row, (z, start) in enumerate(
        zip(x_adv.flatten(1).numpy(), x.flatten(1).numpy(), strict=True)
    ):
        solution = start + solve_quadratic_program(norm, z - start, start, radius)
        np.testing.assert_allclose(ours[row], solution, atol=3e-6)


def solve_quadratic_program(norm, w, x, radius):
    """Minimize |delta - w|^2; for l1 over delta = plus - minus, both not negative."""
    size = len(w)
    if norm == "l2":
        signed, bounds = np.eye(size), np.stack([-x, 1 - x], axis=1)
        room = lambda v: radius**2 - np.sum(v**2)  # noqa: E731
    else:
        signed = np.concatenate([np.eye(size), -np.eye(size)], axis=1)
        bounds = [(0, high) for high in np.concatenate([1 - x, x])]
        room = lambda v: radius - np.sum(v)  # noqa: E731
    result = scipy.optimize.minimize(
        lambda v: np.sum((signed @ v - w) ** 2),
        np.zeros(signed.shape[1]),
        jac=lambda v: 2 * signed.T @ (signed @ v - w),
        bounds=bounds,
        constraints={"type": "ineq", "fun": room},
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    assert result.success, result.message
    return signed @ result.x


@forward_mode
@of_every_norm
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_first_and_second_derivatives_are_exact(threat, scale):
    x_adv, _ = displaced((2, 1, 3, 3), scale, seed=3, dtype=torch.float64)
    x = uniform((2, 1, 3, 3), seed=4, dtype=torch.float64)
    inputs = (x_adv.requires_grad_(), x.requires_grad_())
    assert_derivatives(threat.project, inputs)


@forward_mode
@of_every_norm
def test_derivatives_are_exact_where_the_box_is_active(threat):
    x_adv, x = displaced((2, 1, 3, 3), 1.0, seed=6, dtype=torch.float64)
    on_border = ((x == 0) | (x == 1)).any()
    projected = threat.project(x_adv, x)
    assert on_border
    assert ((projected == 0) | (projected == 1)).any()
    assert_derivatives(lambda images: threat.project(images, x), (x_adv.requires_grad_(),))


def assert_derivatives(function, inputs):
    with torch.random.fork_rng():  # the checks draw their directions from the global generator
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, inputs)


@of_every_norm
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-3, 1.0, 1e6, 1e14])
def test_derivatives_are_finite_at_any_displacement(threat, scale):
    x_adv, x = displaced((4, 3, 4, 4), scale)
    gradient = torch.autograd.grad(
        threat.project(x_adv.requires_grad_(), x).square().sum(), x_adv, create_graph=True
    )[0]
    second = torch.autograd.grad(gradient.square().sum(), x_adv, allow_unused=True)[0]
    assert gradient.isfinite().all()
    assert second is None or second.isfinite().all()


@of_every_norm
def test_an_image_that_is_inside_is_returned_bit_for_bit(threat):
    x = uniform((4, 3, 8, 8))
    inside = threat.sample(x, torch.Generator().manual_seed(1))
    assert torch.equal(threat.project(inside, x), inside)
    assert torch.equal(threat.project(x, x), x)


@pytest.mark.parametrize("threat", [Linf(1.0), L2(1e9), L1(1e9)], ids=["linf", "l2", "l1"])
def test_a_ball_larger_than_the_box_only_clips(threat):
    x_adv, x = displaced((2, 3, 8, 8), 10.0)
    assert torch.equal(threat.project(x_adv, x), x_adv.clamp(0, 1))


@of_every_norm
def test_an_image_is_projected_alike_alone_and_in_a_batch(threat):
    x_adv, x = displaced((5, 3, 8, 8), 1.0)
    x_adv[2] = x[2] + 1e6 * (x_adv[2] - x[2])
    alone = [threat.project(z[None], y[None]) for z, y in zip(x_adv, x, strict=True)]
    torch.testing.assert_close(threat.project(x_adv, x), torch.cat(alone), rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_radius_for_each_image_equals_each_image_at_its_radius(norm):
    x_adv, x = displaced((3, 3, 8, 8), 0.5)
    radii = (0.01, 0.3, 2.0)
    together = PROJECTIONS[norm](x_adv, x, torch.tensor(radii).reshape(3, 1, 1, 1))
    for row, radius in enumerate(radii):
        alone = PROJECTIONS[norm](x_adv[row : row + 1], x[row : row + 1], radius)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-7)


@of_every_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(threat, dtype):
    x_adv, x = (images.to(dtype) for images in displaced((4, 3, 8, 8), 0.5))
    projected = threat.project(x_adv, x)
    assert projected.dtype == torch.float32
    assert_allowed(threat, projected, x)


@of_every_norm
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_spreads_within_its_image_and_infinity_is_far_away(threat, bad):
    x_adv, x = displaced((3, 1, 4, 4), 0.5)
    expected = threat.project(x_adv, x)
    x_adv[1, 0, 2, 2] = bad
    projected = threat.project(x_adv, x)
    assert torch.equal(projected[::2], expected[::2])
    if bad != bad:
        assert projected[1].isnan().any()
    else:
        assert_allowed(threat, projected, x)


@of_every_norm
def test_it_is_one_graph_without_a_value_read_back(threat):
    x_adv, x = displaced((2, 1, 3, 3), 1.0)
    expected = threat.project(x_adv, x)
    traced = make_fx(lambda *images: threat.project(*images))(x_adv, x)
    assert torch.equal(traced(x_adv, x), expected)
    with FakeTensorMode() as mode:
        fake = threat.project(mode.from_tensor(x_adv), mode.from_tensor(x))
    assert fake.shape == x.shape
