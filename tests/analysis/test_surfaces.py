from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from drawings import check_drawing, description, texts
from linear_oracles import HalfSpace, network, random_images, random_tensor
from multirobust.analysis import Surface, loss_surface, loss_surfaces
from multirobust.analysis.surfaces import steepest_plane
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf

PIXELS = 16
THREATS = [Linf(0.1), L2(0.4), L1(0.6, density=1 / PIXELS), L1(0.6, density=3 / PIXELS)]
each_threat = pytest.mark.parametrize("threat", THREATS, ids=repr)


def linear(seed: int = 0) -> tuple[HalfSpace, torch.Tensor, torch.Tensor]:
    weight = random_tensor(PIXELS, seed=seed, dtype=torch.float64)
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    return HalfSpace(weight, bias=-float(weight.sum()) / 2), x, torch.tensor([0, 1])


def gains(threat, weight: np.ndarray) -> tuple[float, float]:
    """How far a step of unit norm along either direction moves a linear score, in closed form."""
    sizes = np.sort(np.abs(weight))[::-1]
    if threat.norm == "linf":
        half = len(sizes) // 2
        return float(sizes.sum()), float(sizes[:half].sum() - sizes[half:].sum())
    if threat.norm == "l2":
        return float(np.linalg.norm(sizes)), 0.0
    count = max(1, round(threat.density * len(sizes)))
    return float(sizes[:count].mean()), float(sizes[count : 2 * count].mean())


def softplus(score: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, score)


@each_threat
def test_on_a_linear_model_the_loss_is_that_of_the_dual_norm_and_its_runner_up(threat):
    model, x, y = linear()
    surface = loss_surface(model, x, y, threat, points=7, reach=0.5)
    first, second = gains(threat, model.weight.detach().numpy())
    a, b = np.meshgrid(surface.axis, surface.axis)
    np.testing.assert_allclose(surface.axis, np.linspace(-0.5, 0.5, 7), atol=1e-12)
    assert surface.axis[3] == 0
    wanted = softplus(threat.radius * (first * a + second * b))
    np.testing.assert_allclose(surface.loss, wanted, rtol=1e-9)
    assert surface.drawn == (2 if threat.norm == "l2" else 0)
    differences = [np.abs(np.diff(wanted, n=2, axis=axis)).mean() for axis in (0, 1)]
    assert surface.roughness == pytest.approx(np.mean(differences) * 36, rel=1e-6)


@each_threat
def test_directions_of_a_network_have_unit_norm_and_are_orthogonal(threat):
    model = network(1).eval()
    x, y = random_images(5, 1, 4, 4), torch.arange(5) % 4
    first, second, drawn = steepest_plane(model, x, y, threat, length=threat.radius)
    for direction in (first, second):
        torch.testing.assert_close(threat.distance(direction, 0 * x), torch.ones(5))
    torch.testing.assert_close((first * second).flatten(1).sum(1), torch.zeros(5))
    assert drawn == 0


def test_the_second_linf_direction_is_the_best_of_all_signs_orthogonal_to_the_first():
    weight = random_tensor(6, seed=3, dtype=torch.float64)
    x = torch.full((1, 1, 2, 3), 0.5, dtype=torch.float64)
    first, second, _ = steepest_plane(
        HalfSpace(weight), x, torch.tensor([0]), Linf(0.1), length=0.1
    )
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    allowed = signs[(signs @ first.flatten()).abs() < 0.5]
    best = allowed[(allowed @ weight).argmax()]
    torch.testing.assert_close(second.flatten(), best)


def test_the_second_l2_direction_is_where_the_gradient_of_a_bowl_turns_to():
    class Bowl(nn.Module):
        """Two logits whose cross-entropy is monotone in the quadratic form x.Ax / 2."""

        curvature = torch.diag(torch.tensor([1.0, 3.0, 5.0, 2.0], dtype=torch.float64))

        def forward(self, images):
            flat = images.flatten(1)
            score = 0.5 * (flat @ self.curvature * flat).sum(1, keepdim=True)
            return torch.cat((torch.zeros_like(score), score), 1)

    x = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).reshape(1, 1, 2, 2)
    first, second, _ = steepest_plane(Bowl(), x, torch.tensor([0]), L2(0.2), length=0.2)
    gradient = Bowl.curvature @ x.flatten()
    torch.testing.assert_close(first.flatten(), gradient / gradient.norm())
    turned = Bowl.curvature @ first.flatten()
    turned = turned - (turned @ first.flatten()) * first.flatten()
    torch.testing.assert_close(second.flatten(), turned / turned.norm())


def test_no_pixel_moves_by_more_than_one_along_a_long_l1_axis():
    model, x, y = linear()
    first, second, _ = steepest_plane(model, x, y, L1(2.5, density=0.01), length=2.5)
    for direction in (first, second):
        assert int((direction != 0).flatten(1).sum(1)[0]) == 3
        assert float((2.5 * direction).abs().max()) <= 1


def test_images_without_a_gradient_get_directions_drawn_from_the_generator():
    class Constant(nn.Module):
        def forward(self, images):
            return 0 * images.flatten(1)[:, :2]

    x, y = random_images(3, 1, 4, 4), torch.tensor([0, 1, 0])
    for threat in THREATS:
        surface = loss_surface(Constant(), x, y, threat, points=3)
        assert surface.drawn == 3
        assert surface.roughness == 0
        np.testing.assert_allclose(surface.loss, np.log(2), rtol=1e-6)
    drawn = [steepest_plane(Constant(), x, y, L2(1.0), length=1.0)[0] for _ in range(2)]
    assert torch.equal(*drawn)


@each_threat
def test_a_mean_of_images_is_the_mean_of_their_surfaces_in_any_batch(threat):
    model = network(1)
    x, y = random_images(3, 1, 4, 4), torch.tensor([0, 1, 2])
    whole = loss_surface(model, x, y, threat, points=5, batch_size=4)
    parts = [loss_surface(model, x[i : i + 1], y[i : i + 1], threat, points=5) for i in range(3)]
    np.testing.assert_allclose(whole.loss, np.mean([s.loss for s in parts], axis=0), rtol=1e-5)
    assert whole.roughness == pytest.approx(np.mean([s.roughness for s in parts]), rel=1e-3)
    assert model.training, "the model is given back in its mode"


def test_clipped_images_are_within_the_box_and_the_center_stays():
    class Watched(HalfSpace):
        def forward(self, x):
            seen.append((float(x.detach().min()), float(x.detach().max())))
            return super().forward(x)

    model, x, y = Watched(random_tensor(PIXELS)), random_images(2, 1, 4, 4), torch.tensor([0, 1])
    seen: list[tuple[float, float]] = []
    plain = loss_surface(model, x, y, Linf(0.3), points=3)
    assert min(low for low, _ in seen) < 0
    seen.clear()
    clipped = loss_surface(model, x, y, Linf(0.3), points=3, clip=True)
    assert min(low for low, _ in seen[2:]) >= 0
    assert max(high for _, high in seen[2:]) <= 1
    assert clipped.center == pytest.approx(plain.center)
    assert clipped.greatest <= plain.greatest


def test_arguments_that_break_a_rule_are_input_errors():
    model, x, y = linear()
    for points in (4, 1):
        with pytest.raises(InputError, match="odd"):
            loss_surface(model, x, y, L2(0.5), points=points)
    with pytest.raises(InputError, match="reach"):
        loss_surface(model, x, y, L2(0.5), reach=0)
    with pytest.raises(InputError, match="batch_size"):
        loss_surface(model, x, y, L2(0.5), batch_size=0)
    with pytest.raises(InputError, match="finite"):
        loss_surface(HalfSpace(torch.full((PIXELS,), torch.nan)), x.float(), y, L2(0.5))


def some(norm: str, top: float) -> Surface:
    axis = np.linspace(-1, 1, 5)
    loss = top * np.exp(axis[None] + 0.3 * axis[:, None] - 1.3)
    return Surface(norm=norm, radius=0.1, axis=axis, loss=loss, roughness=0.25, images=4)


def test_a_surface_tells_its_center_its_rise_and_its_greatest_loss():
    surface = some("l2", 2.0)
    assert surface.summary() == pytest.approx(
        {
            "center": 2 * np.exp(-1.3),
            "rise": 2 * (np.exp(-0.3) - np.exp(-1.3)),
            "greatest": 2.0,
            "roughness": 0.25,
        }
    )


@pytest.mark.parametrize("columns", [1, 4])
def test_a_drawing_shows_every_norm_and_defense_with_its_numbers(columns):
    names = [f"defense_{i}" for i in range(columns)]
    tops = [0.02 * 5**i for i in range(columns)]
    grid = [[some(norm, top) for top in tops] for norm in ("linf", "l1")]
    svg = check_drawing(lambda: loss_surfaces(["linf", "l1"], names, grid))
    shown = texts(svg)
    assert {*names, "ℓ∞", "ℓ₁", "loss (nats)"} <= set(shown)
    assert shown.count("+ 0.0055, most 0.020") == 2
    assert "defense_0 under l1: 0.0055 at the images, 0.020 at most" in description(svg)


def test_a_drawing_of_losses_that_are_all_zero_or_equal_is_drawn():
    flat = Surface(
        norm="l2",
        radius=1,
        axis=np.linspace(-1, 1, 3),
        loss=np.zeros((3, 3)),
        roughness=0,
        images=1,
    )
    assert "+ 0, most 0" in texts(loss_surfaces(["l2"], ["x"], [[flat]]))


def test_a_grid_that_is_not_full_is_refused():
    with pytest.raises(InputError, match="2 rows of 1"):
        loss_surfaces(["l2", "l1"], ["a"], [[some("l2", 1)]])
    with pytest.raises(InputError, match="surfaces"):
        loss_surfaces([], [], [])
