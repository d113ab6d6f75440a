"""ReColor: color conversion, the grid of offsets, and gray images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from linear_oracles import network, random_images, random_tensor
from multirobust.attacks.recolor import ReColor, luv_from_rgb, rgb_from_luv
from multirobust.errors import InputError
from multirobust.threats import Transformation

SMALL = (3, 4, 5)
X = random_images(4, 3, 9, 9, seed=5)
Y = torch.arange(4)
GRAY = random_images(4, 1, 8, 8, seed=6, dtype=torch.float64)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_colors(count: int = 17) -> Tensor:
    """A grid over RGB with black, white and the primaries, (1, 3, count, count^2), float64."""
    values = torch.linspace(0, 1, count, dtype=torch.float64)
    colors = torch.stack(torch.meshgrid(values, values, values, indexing="ij"))
    return colors.view(1, 3, count, count**2)


def unit_scale(luv: np.ndarray) -> Tensor:
    light, u, v = torch.as_tensor(luv).unbind(1)
    return torch.stack((light / 100, (u + 100) / 200, (v + 100) / 200), dim=1)


def test_luv_is_that_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    expected = unit_scale(color.rgb2luv(all_colors().numpy(), channel_axis=1))
    torch.testing.assert_close(luv_from_rgb(all_colors()), expected, rtol=0, atol=1e-6)


def test_rgb_of_luv_is_that_of_scikit_image_within_the_gamut():
    color = pytest.importorskip("skimage.color")
    luv = torch.rand(4, 3, 16, 16, generator=seeded(), dtype=torch.float64)
    light, u, v = luv.unbind(1)
    stretched = torch.stack((100 * light, 200 * u - 100, 200 * v - 100), dim=1)
    expected = torch.as_tensor(color.luv2rgb(stretched.numpy(), channel_axis=1))
    rgb = rgb_from_luv(luv)
    inside = ((rgb > 1e-3) & (rgb < 1 - 1e-3)).all(dim=1)
    assert inside.float().mean() > 0.1
    rows = inside[:, None].expand_as(rgb)
    torch.testing.assert_close(rgb[rows], expected[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_there_and_back_gives_every_color(dtype, error):
    rgb = all_colors().to(dtype)
    torch.testing.assert_close(rgb_from_luv(luv_from_rgb(rgb)), rgb, rtol=0, atol=error)


def test_almost_black_comes_back_within_a_hundredth_of_a_gray_level():
    rgb = 10.0 ** -torch.linspace(2, 12, 300, dtype=torch.float64).view(1, 3, 10, 10)
    torch.testing.assert_close(rgb_from_luv(luv_from_rgb(rgb)), rgb, rtol=0, atol=0.01 / 255)


def test_luv_lies_where_the_docstring_says():
    luv = luv_from_rgb(all_colors())
    low, high = luv.amin((0, 2, 3)), luv.amax((0, 2, 3))
    assert (low >= low.new_tensor((0, 0.08, -0.18))).all()
    assert (high <= high.new_tensor((1 + 1e-9, 1.38, 1.04))).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 11), (3, 64, 64)])
def test_no_offsets_give_the_image(shape):
    x = random_images(2, *shape, seed=1)
    attack = ReColor(radius=0.06, steps=1)
    x_adv = attack.render(x, attack.start(x, seeded()))
    torch.testing.assert_close(x_adv, x, rtol=0, atol=5e-5)


def test_an_equal_offset_everywhere_moves_all_colors_by_the_radius():
    x = 0.4 + 0.2 * torch.rand(2, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    attack = ReColor(radius=0.02, steps=1, grid=SMALL)
    field = x.new_tensor((1, -1, 0.5)).view(1, 3, 1, 1, 1).expand(2, 3, *SMALL)
    luv = luv_from_rgb(attack.render(x, {"field": field}))
    expected = luv_from_rgb(x) + x.new_tensor((0.02, -0.02, 0.01)).view(1, 3, 1, 1)
    torch.testing.assert_close(luv, expected, rtol=0, atol=1e-9)


def offset_of(color: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Trilinear interpolation of a grid (3, *axes) at one color, by the sum over eight corners."""
    places = [np.clip(c, 0, 1) * (n - 1) for c, n in zip(color, grid.shape[1:], strict=True)]
    total = np.zeros(3)
    for corner in np.ndindex(2, 2, 2):
        weight, index = 1.0, []
        for place, side, count in zip(places, corner, grid.shape[1:], strict=True):
            below = min(int(place), count - 2)
            weight *= place - below if side else 1 - (place - below)
            index.append(below + side)
        total += weight * grid[(slice(None), *index)]
    return total


def test_offsets_are_interpolated_between_the_points_of_the_grid():
    x = 0.3 + 0.4 * torch.rand(1, 3, 4, 4, generator=seeded(), dtype=torch.float64)
    x[0, :, 0, 0] = x.new_tensor((1, 0, 0))  # beyond the grid's end in u
    field = torch.rand(1, 3, *SMALL, generator=seeded(), dtype=torch.float64) * 2 - 1
    attack = ReColor(radius=0.03, steps=1, grid=SMALL)
    colors = luv_from_rgb(x).numpy()[0]
    moved = [c + 0.03 * offset_of(c, field.numpy()[0]) for c in colors.reshape(3, -1).T]
    expected = rgb_from_luv(torch.tensor(np.array(moved)).T.reshape(1, 3, 4, 4)).clamp(0, 1)
    actual = attack.render(x, {"field": field})
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_gray_values_are_moved_by_a_piecewise_linear_function():
    attack = ReColor(radius=0.1, steps=1)
    field = torch.rand(4, 1, 16, generator=seeded(), dtype=torch.float64) * 2 - 1
    points = np.linspace(0, 1, 16)
    curves = [np.interp(x, points, f) for x, f in zip(GRAY.numpy(), field[:, 0], strict=True)]
    expected = (GRAY + 0.1 * torch.tensor(np.array(curves))).clamp(0, 1)
    actual = attack.render(GRAY, {"field": field})
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_equal_colors_become_equal_colors():
    x = X.repeat(1, 1, 2, 1)
    x_adv = ReColor(radius=0.1, steps=3, grid=SMALL)(network().eval(), x, Y)
    torch.testing.assert_close(x_adv[:, :, :9], x_adv[:, :, 9:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_derivatives_by_the_offsets(channels):
    x = 0.3 + 0.4 * torch.rand(2, channels, 3, 3, generator=seeded(), dtype=torch.float64)
    attack = ReColor(radius=0.05, steps=1, grid=(2, 3, 2))
    shape = (2, *attack.shape(x))
    field = (torch.rand(shape, generator=seeded(), dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: attack.render(x, {"field": f}), (field,))


def test_black_white_and_primaries_have_finite_derivatives():
    x = all_colors(3).reshape(1, 3, 3, 9).float()
    for seed in range(5):
        field = random_tensor(1, 3, *SMALL, seed=seed).clamp(-1, 1).requires_grad_()
        x_adv = ReColor(radius=0.5, steps=1, grid=SMALL).render(x, {"field": field})
        (gradient,) = torch.autograd.grad(x_adv.sum(), field)
        assert gradient.isfinite().all()
        assert gradient.any()


@given(
    radius=st.floats(1e-3, 0.9),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e15]),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=15, deadline=None)
def test_offsets_stay_within_the_radius_through_the_ascent(radius, scale, channels):
    attack = ReColor(radius=radius, steps=5, grid=SMALL, random_start=True)
    x = X[:, :channels]
    parameters = attack.start(x, seeded())
    for step in range(attack.steps):
        assert parameters["field"].abs().max() <= 1
        x_adv = attack.render(x, parameters)
        assert x_adv.isfinite().all()
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        gradient = random_tensor(*parameters["field"].shape, seed=step) * scale
        parameters = attack.ascend(parameters, {"field": gradient}, step)


class Reddish(nn.Module):
    """Tells red images from others by their mean color: class 0 where red leads."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        score = mean[:, 0] - mean[:, 1:].mean(1)
        return torch.stack((score, -score), dim=1)


def test_a_greater_severity_breaks_as_many_or_more():
    tint = torch.linspace(-0.4, 0.4, 40)
    x = 0.3 + 0.2 * torch.rand(40, 3, 8, 8, generator=seeded())
    x[:, 0] = (x[:, 0] + tint[:, None, None]).clamp(0, 1)
    model = Reddish()
    y = model(x).argmax(1)
    attacks = [ReColor(radius=r, steps=12, grid=(4, 8, 8)) for r in ReColor.severities[::5]]
    standing = [int((model(a(model, x, y)).argmax(1) == y).sum()) for a in attacks]
    assert standing == sorted(standing, reverse=True)
    assert standing[0] > standing[-1]


def test_severities_are_the_twenty_published_ones():
    assert ReColor.severities[::19] == (0.005, 0.1)
    assert len(ReColor.severities) == 20
    assert ReColor.severities[11] == 0.06


@pytest.mark.parametrize("random_start", [False, True])
def test_what_every_attack_promises(random_start):
    model, x = network().eval(), X.clone()
    attack = ReColor(radius=0.1, steps=3, random_start=random_start)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x_adv = attack(model, x, Y, generator=seeded())
    assert torch.equal(x, X)
    assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, x.dtype, False)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert attack.threats == (Transformation("recolor", 0.1),)
    assert torch.equal(x_adv, attack(model, x, Y, generator=seeded()))
    assert torch.equal(x_adv, attack(model, x, Y, generator=seeded(4))) is not random_start


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": -0.1}, "positive"),
        ({"radius": 6.0}, "below 1, got 6.0; the published one is 0.06"),
        ({"grid": (16, 1, 32)}, r"grid must be three numbers from 2 on, got \(16, 1, 32\)"),
        ({"smoothness": float("nan")}, "smoothness must be a finite number"),
    ],
)
def test_wrong_settings_are_errors_that_say_what_is_right(settings, message):
    with pytest.raises(InputError, match=message):
        ReColor(**{"radius": 0.06, "steps": 5, **settings})


def test_two_channels_are_an_error_that_says_what_is_needed():
    with pytest.raises(InputError, match=r"1 \(gray\) or 3 \(RGB\) channels, got shape \(4, 2"):
        ReColor(radius=0.06, steps=1).start(X[:, :2], seeded())
