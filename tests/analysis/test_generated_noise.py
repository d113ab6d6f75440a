from __future__ import annotations

import numpy as np
import pytest
import torch

from drawings import check_drawing, description, texts
from linear_oracles import random_images
from multirobust.analysis import amplified, generated_noise, noise_gallery
from multirobust.analysis.plots_noise import _factor
from multirobust.attacks import PGD, UniformSampler
from multirobust.defenses import ANT, MNGAC, Standard
from multirobust.errors import InputError
from multirobust.models import NoiseGenerator
from multirobust.threats import L1, L2, Linf, SmoothMap

THREATS = {"linf": Linf(0.1), "l2": L2(0.5), "l1": L1(1.0)}


def mng_ac(network: NoiseGenerator) -> MNGAC:
    return MNGAC(
        UniformSampler([PGD(threat=threat, steps=1, step_size=0.1) for threat in THREATS.values()]),
        network,
    )


def identity(channels: int = 1) -> NoiseGenerator:
    """A generator whose convolutions give nothing, so that the noise is z without its border."""
    network = NoiseGenerator(channels, conditioning="noise")
    for parameter in network.parameters():
        parameter.data.zero_()
    return network


@pytest.mark.parametrize("threat", THREATS)
def test_the_augmented_images_are_those_of_the_defense_with_the_same_z(threat):
    defense, x = mng_ac(NoiseGenerator(3)), random_images(4, 3, 6, 6)
    found = generated_noise(defense, x, THREATS)
    wanted = defense.augment(x, THREATS[threat], torch.Generator().manual_seed(0))
    np.testing.assert_allclose(found.augmented[threat].images, wanted.numpy(), atol=1e-6)
    assert 0 < found.augmented[threat].used <= 1 + 1e-5


@pytest.mark.parametrize("threat", THREATS)
def test_the_images_and_the_live_share_are_those_of_the_map_of_the_defense(threat):
    defense, x = mng_ac(NoiseGenerator(3)), random_images(4, 3, 6, 6)
    defense.ball_map = SmoothMap()
    found = generated_noise(defense, x, THREATS).augmented[threat]
    wanted = defense.augment(x, THREATS[threat], torch.Generator().manual_seed(0))
    np.testing.assert_allclose(found.images, wanted.numpy(), atol=1e-6)
    assert found.live == 1


def test_a_generator_blind_to_the_image_has_no_variance_over_images():
    found = generated_noise(mng_ac(identity()), random_images(4, 1, 8, 8), THREATS, draws=64)
    assert found.over_images == 0
    assert found.dependence == 0
    assert found.over_z == pytest.approx(1, abs=0.05)  # z is standard normal


def test_a_generator_that_only_sees_the_image_depends_on_it_alone():
    class Image(NoiseGenerator):
        def forward(self, z, x):
            return x

    x = random_images(5, 1, 4, 4)
    found = generated_noise(mng_ac(Image(1)), x, THREATS)
    assert found.dependence == pytest.approx(1)
    assert found.over_images == pytest.approx(float(x.double().var(dim=0).mean()))


def test_the_live_share_is_that_of_the_pixels_a_linf_ball_does_not_cut():
    x = torch.full((50, 1, 8, 8), 0.5)
    live = generated_noise(mng_ac(identity()), x, {"linf": Linf(0.4)}).augmented["linf"].live
    assert live == pytest.approx(0.3108, abs=0.02)  # P(|z| < 0.4)


def test_the_share_of_the_radius_is_that_of_the_distance_where_nothing_is_cut():
    x = torch.full((50, 1, 8, 8), 0.5)

    class Small(NoiseGenerator):
        def forward(self, z, x):
            return 0 * x + 0.03

    found = generated_noise(mng_ac(Small(1)), x, THREATS)
    assert found.augmented["linf"].used == pytest.approx(0.3)
    assert found.augmented["l2"].used == pytest.approx(0.03 * 8 / 0.5)
    assert found.augmented["linf"].live == 1


def test_the_noise_of_ant_lies_on_its_sphere():
    found = generated_noise(ANT(NoiseGenerator(1), L2(0.5)), random_images(3, 1, 6, 6), THREATS)
    lengths = np.linalg.norm(found.noise.reshape(3, -1), axis=1)
    np.testing.assert_allclose(lengths, 0.5, rtol=1e-5)


def test_no_global_state_and_no_gradient_is_left():
    defense = mng_ac(NoiseGenerator(1))
    first, second = (generated_noise(defense, random_images(2, 1, 4, 4), THREATS) for _ in "12")
    np.testing.assert_array_equal(first.noise, second.noise)
    assert all(parameter.grad is None for parameter in defense.noise.parameters())


def test_what_has_no_generator_is_an_input_error():
    x = random_images(2, 1, 4, 4)
    with pytest.raises(InputError, match=r"generator, got Standard"):
        generated_noise(Standard(), x, THREATS)
    with pytest.raises(InputError, match="two or more"):
        generated_noise(mng_ac(NoiseGenerator(1)), x[:1], THREATS)
    with pytest.raises(InputError, match="two or more"):
        generated_noise(mng_ac(NoiseGenerator(1)), x, THREATS, draws=1)


def test_amplified_noise_is_gray_where_there_is_none_and_signed():
    shown = amplified(np.array([-1.0, -0.1, 0.0, 0.1, 1.0]), 2)
    np.testing.assert_allclose(shown, [0, 0.3, 0.5, 0.7, 1])


@pytest.mark.parametrize(
    ("size", "factor"), [(0.1, 5), (0.05, 10), (0.03, 10), (0.5, 1), (3, 0.1), (0, 1)]
)
def test_the_factor_is_a_round_number_that_keeps_the_noise_in_range(size, factor):
    assert _factor(np.full(10, size)) == pytest.approx(factor)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_drawing_holds_the_images_their_factors_and_the_statistics(channels):
    found = generated_noise(
        mng_ac(NoiseGenerator(channels)), random_images(3, channels, 6, 6), THREATS
    )
    svg = check_drawing(lambda: noise_gallery(found, rows=2, name="mng_ac"))
    assert svg.count("data:image/png;base64") == 2 * 8
    shown = texts(svg)
    assert {"clean", "ℓ∞ image", "ℓ₁ image", "ℓ₂ image"} <= set(shown)
    assert "ℓ∞: 100 % of the radius used" in description(svg)
    with pytest.raises(InputError, match="rows"):
        noise_gallery(found, rows=0)
