"""Rotation and translation: geometry, exhaustive search, and what each search may promise."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from linear_oracles import network, random_images
from multirobust.attacks import Margin, PassMeter, Restarts
from multirobust.attacks.spatial import (
    SpatialGradient,
    SpatialGrid,
    SpatialRandom,
    rotate_and_translate,
)
from multirobust.data import digits
from multirobust.errors import InputError
from multirobust.models import build
from multirobust.threats import Transformation

X = random_images(4, 3, 9, 9, seed=5, dtype=torch.float64)
Y = torch.arange(4)
ATTACKS = {
    "grid": SpatialGrid(radius=30.0, angles=5, translations=3),
    "random": SpatialRandom(radius=30.0, draws=7),
    "gradient": SpatialGradient(radius=30.0, steps=4),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
every_padding = pytest.mark.parametrize("padding", ["zeros", "reflection"])


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(x: Tensor, angle: float = 0, shift: tuple[float, float] = (0, 0), **options) -> Tensor:
    angles, shifts = x.new_full((len(x),), angle), x.new_tensor(shift).expand(len(x), 2)
    return rotate_and_translate(x, angles, shifts, **options)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@every_padding
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14), (3, 64, 64), (2, 5, 8)])
def test_no_rotation_and_no_translation_give_the_image(shape, padding):
    x = random_images(2, *shape, seed=1, dtype=torch.float64)
    close(moved(x, padding=padding), x)


@every_padding
@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
@pytest.mark.parametrize("side", [8, 9])
def test_quarter_turns_are_those_of_rot90(side, quarters, padding):
    x = random_images(2, 3, side, side, seed=2, dtype=torch.float64)
    close(moved(x, 90 * quarters, padding=padding), torch.rot90(x, quarters, (2, 3)))


def test_a_half_turn_of_an_oblong_image_flips_both_axes():
    x = random_images(2, 3, 8, 13, seed=2, dtype=torch.float64)
    close(moved(x, 180), x.flip(2, 3))


@pytest.mark.parametrize(("right", "down"), [(2, 1), (-3, 0), (1, -2), (20, 0)])
def test_whole_pixels_move_the_image_and_bring_in_zeros(right, down):
    margin = 20
    padded = F.pad(X, (margin,) * 4)
    expected = padded[..., margin - down :, margin - right :][..., :9, :9]
    close(moved(X, 0, (right, down)), expected)


def test_reflection_brings_in_the_image_mirrored_at_its_outermost_pixels():
    expected = F.pad(X, (2, 0, 0, 3), mode="reflect")[..., 3:, :9]
    close(moved(X, 0, (2, -3), padding="reflection"), expected)


def test_half_a_pixel_averages_two_neighbors():
    expected = (X[..., 1:] + X[..., :-1]) / 2
    close(moved(X, 0, (0.5, 0))[..., 1:], expected)


def test_the_image_is_rotated_before_it_is_translated():
    close(moved(X, 90, (2, -1)), moved(moved(X, 90), 0, (2, -1)))


def test_radius_30_moves_an_image_of_side_32_by_up_to_3_pixels():
    x = random_images(1, 1, 32, 32, dtype=torch.float64)
    attack = SpatialGradient(radius=30.0, steps=1)
    corner = attack.render(x, {"share": x.new_tensor([[0, 1, -1]])})
    close(corner, moved(x, 0, (3, -3)))
    turned = attack.render(x, {"share": x.new_tensor([[1, 0, 0]])})
    close(turned, moved(x, 30))


@every_padding
def test_derivatives_by_the_parameters(padding):
    x = random_images(2, 2, 8, 10, seed=4, dtype=torch.float64) * 0.8 + 0.1
    share = torch.tensor([[0.31, 0.42, -0.13], [-0.7, 0.2, 0.9]], dtype=torch.float64)
    attack = SpatialGradient(radius=30.0, steps=1, padding=padding)
    assert torch.autograd.gradcheck(
        lambda s: attack.render(x, {"share": s}), (share.requires_grad_(),)
    )


def brute_force(attack: SpatialGrid, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The margins of all members, (members, b), one forward pass each."""
    angles = torch.linspace(-attack.radius, attack.radius, attack.angles).double()
    reach = attack.radius / 30 * 3 / 32 * x.shape[-1]
    places = torch.linspace(-reach, reach, attack.translations).double()
    members = itertools.product(angles.tolist(), places.tolist(), places.tolist())
    with torch.no_grad():
        logits = [model(moved(x, angle, (right, down))) for angle, right, down in members]
    return torch.stack([Margin().of(part, y, y) for part in logits])


@pytest.mark.parametrize("radius", [2.0, 5.0, 10.0])
def test_the_grid_is_as_strong_as_the_strongest_of_its_members(radius):
    model = network(classes=4).double().eval()
    x = random_images(40, 3, 8, 8, seed=8, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = SpatialGrid(radius=radius, angles=5, translations=3)
    greatest = brute_force(attack, model, x, y).amax(0)
    with torch.no_grad():
        margin = Margin().of(model(attack(model, x, y)), y, y)
    torch.testing.assert_close(margin > 0, greatest > 0)
    stands = greatest <= 0
    torch.testing.assert_close(margin[stands], greatest[stands], rtol=0, atol=1e-6)
    assert 0 < stands.sum() < 40


def test_random_is_at_least_as_strong_as_each_of_its_draws():
    model = network(classes=4).double().eval()
    x = random_images(40, 3, 8, 8, seed=8, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = SpatialRandom(radius=20.0, draws=6)
    shares, one = attack.shares(x, seeded()), SpatialGradient(radius=20.0, steps=1)
    with torch.no_grad():
        logits = [model(one.render(x, {"share": share})) for share in shares.unbind(1)]
        greatest = torch.stack([Margin().of(part, y, y) for part in logits]).amax(0)
        margin = Margin().of(model(attack(model, x, y, generator=seeded())), y, y)
    torch.testing.assert_close(margin > 0, greatest > 0)
    torch.testing.assert_close(margin[greatest <= 0], greatest[greatest <= 0], rtol=0, atol=1e-6)


class Recorded(nn.Module):
    """Prefers class 0 for images darker than a threshold; records the sizes of its batches."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold, self.sizes = threshold, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        score = self.threshold - x.flatten(1).mean(1)
        return torch.stack((score, -score), dim=1)


def test_an_image_that_never_breaks_is_tried_everywhere_in_batches_no_larger_than_given():
    x = torch.cat((torch.ones(7, 1, 8, 8), torch.full((3, 1, 8, 8), 0.3)))
    model = Recorded(threshold=0.95)
    y = (x.flatten(1).mean(1) > 0.95).long()
    x_adv = SpatialGrid(radius=30.0)(model, x, y)
    # The zeros that enter darken the white ones at once: the three others have the batch alone.
    assert model.sizes[0] == 10
    assert max(model.sizes) <= 10
    assert sum(model.sizes[1:]) == 3 * 774
    assert len(model.sizes) <= 775 / 3 + 2
    assert (x_adv[:7].flatten(1).mean(1) < 0.95).all()


def test_an_image_that_is_wrong_at_first_costs_one_pass():
    model = network().eval()
    with torch.no_grad():
        wrong = (model(X.float()).argmax(1) + 1) % 4
    with PassMeter(model) as meter:
        SpatialRandom(radius=0.01)(model, X.float(), wrong)
    assert (meter.forwards, meter.backwards) == (len(X), 0)


def test_logits_that_are_nan_count_as_broken():
    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] * torch.nan

    attack = SpatialRandom(radius=30.0)
    x_adv = attack(Nan(), X, Y, generator=seeded())
    assert x_adv.isfinite().all()
    assert not torch.equal(x_adv, X)


@given(
    radius=st.floats(0.5, 180),
    step_size=st.floats(0.01, 1),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
)
@settings(max_examples=25, deadline=None)
def test_shares_stay_within_one_through_the_ascent(radius, step_size, seed, scale):
    attack = SpatialGradient(radius=radius, steps=5, step_size=step_size)
    parameters, generator = attack.start(X, seeded(seed)), seeded(seed)
    for step in range(attack.steps):
        gradient = torch.randn(parameters["share"].shape, generator=generator).double() * scale
        parameters = attack.ascend(parameters, {"share": gradient}, step)
        assert parameters["share"].abs().max() <= 1
        x_adv = attack.render(X, parameters)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network fitted to the digits, and 60 test images that it gets right."""
    data = digits()
    x, y = data.train.floats(), data.train.labels
    model = build("small_cnn", classes=10, channels=1, widths=(4, 8), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    x, y = data.test.floats(), data.test.labels
    right = (model(x).argmax(1) == y).nonzero()[:60, 0]
    return model, x[right], y[right]


def left(attack, trained) -> int:
    model, x, y = trained
    with torch.no_grad():
        return int((model(attack(model, x, y, generator=seeded())).argmax(1) == y).sum())


@every_attack
def test_a_greater_severity_breaks_as_many_or_more(attack, trained):
    standing = [left(dataclasses.replace(attack, radius=r), trained) for r in attack.severities]
    assert standing == sorted(standing, reverse=True)
    assert standing[0] > standing[-1]


def test_severities_ascend_and_hold_the_published_radius():
    for attack in ATTACKS.values():
        assert attack.severities == tuple(sorted(set(attack.severities)))
        assert 30 in attack.severities


def test_the_grid_breaks_as_many_as_random_draws_and_restarts_help_the_gradient(trained):
    grid, gradient = SpatialGrid(radius=20.0), SpatialGradient(radius=20.0, steps=5)
    assert left(grid, trained) <= left(SpatialRandom(radius=20.0), trained)
    assert left(Restarts(gradient, 4), trained) < left(gradient, trained) < 60


@every_attack
def test_keeps_the_shape_and_the_images_and_names_its_threat(attack):
    model, x = network().eval(), X.float()
    x_adv = attack(model, x, Y, generator=seeded())
    assert torch.equal(x, X.float())
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert not torch.equal(x_adv, x)
    assert attack.threats == (Transformation("spatial", 30.0),)
    assert torch.equal(x_adv, attack(model, x, Y, generator=seeded()))
    assert torch.equal(attack(model, x, Y), attack(model, x, Y, generator=seeded(0)))


@pytest.mark.parametrize(
    ("build_attack", "message"),
    [
        (lambda: SpatialGrid(radius=0.0), "positive"),
        (lambda: SpatialRandom(radius=181.0), "at most 180, got 181.0"),
        (lambda: SpatialGrid(radius=30.0, padding="reflect"), "reflection"),
        (lambda: SpatialGrid(radius=30.0, angles=1), "angles must be at least 2, got 1"),
        (lambda: SpatialGrid(radius=30.0, translations=0), "translations must be at least 2"),
        (lambda: SpatialRandom(radius=30.0, draws=0), "draws must be at least 1, got 0"),
        (lambda: SpatialGradient(radius=30.0, steps=0), "steps must be at least 1"),
        (lambda: SpatialGradient(radius=30.0, steps=1, step_size=2.0), "step_size must be a share"),
        (lambda: SpatialGradient(radius=30.0, steps=1, padding="wrap"), "padding"),
    ],
)
def test_wrong_settings_are_errors_that_say_what_is_right(build_attack, message):
    with pytest.raises(InputError, match=message):
        build_attack()
