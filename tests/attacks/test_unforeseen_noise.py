"""What each unforeseen attack draws, against closed forms, loops and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from linear_oracles import random_images, random_tensor
from multirobust.attacks.unforeseen import JPEGL1, JPEGL2, Elastic, Fog, Gabor, JPEGLinf, Snow
from multirobust.attacks.unforeseen.fog import _diamond_square
from multirobust.attacks.unforeseen.gabor import _noise, _sharpening

X = random_images(2, 3, 12, 9, seed=6, dtype=torch.float64)
GRAY = X[:, :1]


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_flow_gives_the_image():
    attack = Elastic(radius=1.0)
    flow = torch.zeros(2, 2, 12, 9, dtype=torch.float64)
    torch.testing.assert_close(attack.render(X, {"flow": flow}), X, rtol=0, atol=1e-12)


def test_a_constant_flow_shifts_the_image_and_lets_black_in():
    flow = torch.zeros(2, 2, 12, 9, dtype=torch.float64)
    flow[:, 0], flow[:, 1] = 2, -1
    shifted = Elastic(radius=2.0).render(X, {"flow": flow})
    expected = torch.zeros_like(X)
    expected[:, :, 1:, :-2] = X[:, :, :-1, 2:]
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-12)


def test_the_flow_is_blurred_as_by_scipy_with_mirrored_edges():
    scipy = pytest.importorskip("scipy.ndimage")
    from multirobust.attacks.unforeseen.elastic import _smoothing

    flow = random_tensor(32, 11, seed=2, dtype=torch.float64)
    ours = _smoothing(32, 1.3, flow) @ flow @ _smoothing(11, 1.3, flow).T
    reach = math.ceil(4 * 1.3)
    theirs = scipy.gaussian_filter(flow.numpy(), 1.3, mode="mirror", radius=reach)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)


def fog_by_loops(levels: list[Tensor]) -> np.ndarray:
    """Diamond-square on one full grid, point by point."""
    n = 2 ** len(levels)
    grid, half = np.zeros((n, n)), n // 2
    for i, level in enumerate(levels):
        noise = (2 * level.numpy() - 1) / 2**i
        starts = range(0, n, 2 * half)
        for (a, row), (b, column) in itertools.product(enumerate(starts), enumerate(starts)):
            corners = [
                grid[(row + p) % n, (column + q) % n] for p in (0, 2 * half) for q in (0, 2 * half)
            ]
            grid[row + half, column + half] = np.mean(corners) + noise[0, a, b]
        for (a, row), (b, column) in itertools.product(enumerate(starts), enumerate(starts)):
            for k, (r, c) in ((1, (row, column + half)), (2, (row + half, column))):
                around = [
                    grid[(r + p) % n, (c + q) % n]
                    for p, q in ((half, 0), (-half, 0), (0, half), (0, -half))
                ]
                grid[r, c] = np.mean(around) + noise[k, a, b]
        half //= 2
    return (grid - grid.min()) / (grid.max() - grid.min())


def test_fog_is_the_diamond_square_algorithm():
    levels = [
        torch.rand(2, 3, 2**i, 2**i, generator=seeded(), dtype=torch.float64) for i in range(4)
    ]
    fog = _diamond_square(levels)
    assert fog.shape == (2, 1, 16, 16)
    expected = np.stack([fog_by_loops([level[i] for level in levels]) for i in range(2)])
    np.testing.assert_allclose(fog[:, 0].numpy(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(fog.amin((2, 3)), torch.zeros(2, 1, dtype=torch.float64))
    torch.testing.assert_close(fog.amax((2, 3)), torch.ones(2, 1, dtype=torch.float64))


def test_level_random_numbers_make_no_fog_and_finite_images():
    attack = Fog(radius=0.5)
    levels = {n: torch.full_like(p, 0.5) for n, p in attack.start(X, seeded()).items()}
    expected = X / (X.amax((2, 3), keepdim=True) + 0.5)
    torch.testing.assert_close(attack.render(X, levels), expected, rtol=0, atol=1e-12)


def test_fog_only_lifts_pixels_and_the_thickest_hides_the_image():
    attack = Fog(radius=32.0)
    parameters = attack.start(X, seeded())
    one, other = attack.render(X, parameters), attack.render(X.flip(0), parameters)
    assert (one - other).abs().max() < 2 / 32
    assert (one >= X / (X.amax((2, 3), keepdim=True) + 32) - 1e-12).all()


def test_no_flakes_leave_the_washed_out_image():
    attack = Snow(radius=1.0)
    parameters = attack.start(X, seeded())
    parameters["flakes"].zero_()
    weights = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    luma = torch.einsum("bchw,c->bhw", X, weights)[:, None]
    expected = (0.75 * X + 0.25 * torch.maximum(X, 1.5 * luma + 0.5)).clamp(0, 1)
    torch.testing.assert_close(attack.render(X, parameters), expected, rtol=0, atol=1e-12)


def test_snow_is_the_convolution_of_flakes_with_their_streaks():
    attack, x = Snow(radius=0.02), torch.full((1, 1, 16, 12), 0.5, dtype=torch.float64)
    parameters = attack.start(x, seeded())
    flakes, streaks = parameters["flakes"][0] ** 4, parameters["streaks"][0]
    places = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0))
    expected = torch.zeros(16 + 12, 12 + 12, dtype=torch.float64)
    for kind, (row, column) in enumerate(places):
        shape = streaks[kind, row : row + 13, column : column + 13]
        assert torch.isclose(shape.sum(), streaks[kind].sum())
        torch.testing.assert_close(shape, shape.flip(0, 1))
        for i, j in itertools.product(range(4), range(3)):
            down, right = 4 * i + row, 4 * j + column
            expected[down : down + 13, right : right + 13] += flakes[kind, i, j] * shape
    washed = 0.5 + 0.25 * (0.75 + 0.5 - 0.5)
    rendered = attack.render(x, parameters)[0, 0]
    torch.testing.assert_close(rendered, washed + 0.02 * expected[6:-6, 6:-6])


def test_streaks_fall_to_one_side_and_are_at_most_thirteen_pixels_long():
    x = torch.zeros(40, 1, 8, 8)
    streaks = Snow(radius=1.0).start(x, seeded())["streaks"][:, 0, :13, :13]
    axis = torch.arange(-6, 7.0)
    lean = (streaks * axis[:, None] * axis).sum((1, 2)).sign()
    assert set(lean.tolist()) == {-1.0, 1.0}
    assert (streaks >= 0).all()
    assert (streaks[:, 6, 6] > 0.5).all()


def test_no_weights_give_the_image_and_some_give_noise_between_0_and_the_radius():
    attack = Gabor(radius=0.3)
    parameters = attack.start(0.5 * X, seeded())
    noise = attack.render(0.5 * X, parameters) - 0.5 * X
    torch.testing.assert_close(noise.amin((2, 3)), torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(noise.amax((2, 3)), torch.full((2, 3), 0.3, dtype=torch.float64))
    parameters["weights"].zero_()
    assert torch.equal(attack.render(X, parameters), X)


def test_gabor_noise_is_the_convolution_of_the_weights_with_the_kernel():
    parameters = Gabor(radius=0.3).start(X, seeded())
    weights, kernels = parameters["weights"], parameters["kernels"]
    expected = torch.nn.functional.conv2d(weights[:1], kernels[:1], padding=11)
    torch.testing.assert_close(_noise(weights, kernels)[:1], expected)
    assert (weights != 0).sum((1, 2, 3)).tolist() == [round(12 * 9 / 14)] * 2


def test_the_gradient_of_gabor_noise_is_that_with_its_statistics_held():
    attack, x = Gabor(radius=0.1), 0.3 + 0.4 * X
    parameters = attack.start(x, seeded())
    weights, kernels = parameters["weights"], parameters["kernels"]
    gain, shift = _sharpening(_noise(weights, kernels))

    def held(weights: Tensor) -> Tensor:
        return (x + 0.1 * (gain * _noise(weights, kernels) + shift)).clamp(0, 1)

    leaf = weights.clone().requires_grad_()
    assert torch.autograd.gradcheck(held, [leaf], fast_mode=True)
    slope = random_tensor(*x.shape, seed=1, dtype=torch.float64)
    ours = torch.autograd.grad(
        (attack.render(x, {**parameters, "weights": leaf}) * slope).sum(), leaf
    )
    expected = torch.autograd.grad((held(leaf) * slope).sum(), leaf)
    torch.testing.assert_close(ours, expected)


def jpeg_zero(x: Tensor) -> Tensor:
    attack = JPEGLinf(radius=1.0)
    start = attack.start(x, seeded())["coefficients"]
    return attack.render(x, {"coefficients": torch.zeros_like(start)})


def test_no_perturbation_gives_a_gray_image_and_a_color_image_of_even_chroma():
    assert torch.equal(jpeg_zero(GRAY), GRAY)
    even = X[:, :, :6, :4].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(jpeg_zero(even), even, rtol=0, atol=1e-12)
    torch.testing.assert_close(jpeg_zero(GRAY.expand_as(X)), GRAY.expand_as(X), rtol=0, atol=1e-12)


def test_no_perturbation_keeps_the_luminance_and_averages_chroma():
    x = 0.4 + 0.2 * random_images(2, 3, 16, 16, seed=3, dtype=torch.float64)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    before, after = x, jpeg_zero(x)
    torch.testing.assert_close((after * weights).sum(1), (before * weights).sum(1))
    chroma = [(i - (i * weights).sum(1, keepdim=True)) for i in (before, after)]
    averaged = torch.nn.functional.avg_pool2d(chroma[0], 2)
    torch.testing.assert_close(chroma[1][:, :, ::2, 1::2], averaged)


def test_a_perturbation_moves_the_coefficients_that_scipy_finds_by_half_a_quantization_step():
    fft = pytest.importorskip("scipy.fft")
    x = torch.full((1, 1, 16, 24), 0.5, dtype=torch.float64)
    attack = JPEGLinf(radius=0.05)
    coefficients = attack.start(x, seeded())["coefficients"]
    moved = (attack.render(x, {"coefficients": coefficients}) - x)[0, 0].numpy() * 255
    table = np.array([[16, 11, 10], [12, 12, 14], [14, 13, 16]])
    for block in range(6):
        row, column = 8 * (block // 3), 8 * (block % 3)
        found = fft.dctn(moved[row : row + 8, column : column + 8], norm="ortho")
        ours = coefficients[0, 64 * block : 64 * (block + 1)].reshape(8, 8).numpy()
        np.testing.assert_allclose(found[:3, :3], ours[:3, :3] * table / 2, rtol=0, atol=1e-10)
        assert found[7, 0] == pytest.approx(ours[7, 0] * 72 / 2)
        assert found[0, 7] == pytest.approx(ours[0, 7] * 61 / 2)


def test_the_first_step_of_jpeg_l1_attains_the_linear_maximum_of_the_ball():
    x = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    gradient = random_tensor(2, 64, seed=5, dtype=torch.float64)
    for radius in (1.3, 7.0, 500.0):
        attack = JPEGL1(radius=radius)
        start = attack.start(x, seeded())
        moved = attack.ascend(start, {"coefficients": gradient}, 0)["coefficients"]
        order = gradient.abs().sort(dim=1, descending=True).values
        left = (radius - 2 * torch.arange(64.0, dtype=torch.float64)).clamp(0, 2)
        torch.testing.assert_close((moved * gradient).sum(1), (order * left).sum(1))


def test_steps_of_jpeg_l2_follow_the_gradient_to_the_sphere():
    attack = JPEGL2(radius=2.0, steps=4)
    gradient = random_tensor(2, 64, seed=5, dtype=torch.float64)
    direction = gradient / gradient.norm(dim=1, keepdim=True)
    parameters = {"coefficients": torch.zeros_like(gradient)}
    for step, length in enumerate((1.0, 2.0, 2.0)):
        parameters = attack.ascend(parameters, {"coefficients": gradient}, step)
        torch.testing.assert_close(parameters["coefficients"], direction * length)


@pytest.mark.parametrize("kind", [JPEGL1, JPEGL2, JPEGLinf], ids=lambda kind: kind.name)
def test_the_coefficients_cover_the_padded_blocks(kind):
    gray, color = (kind(radius=1.0).start(x, seeded())["coefficients"] for x in (GRAY, X))
    assert gray.shape == (2, 2 * 2 * 64)
    assert color.shape == (2, 16 * 16 + 2 * 8 * 8)
