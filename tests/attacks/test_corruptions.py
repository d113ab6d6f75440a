"""Corruptions: closed forms, library operations as oracles, and what every corruption promises."""

from __future__ import annotations

import importlib
import io
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import color, filters
from torch import Tensor

from linear_oracles import network
from multirobust.attacks.corruptions import (
    COMMON,
    CORRUPTIONS,
    EXTRA,
    SEVERITIES,
    Corruption,
    digital,
    extra,
    noise,
)
from multirobust.attacks.corruptions.blur import clipped_zoom, disk, glass_blur, trail
from multirobust.attacks.corruptions.frost import PHOTOGRAPHS, crystals
from multirobust.attacks.corruptions.spatter import distances, edges, equalized
from multirobust.attacks.corruptions.weather import plasma
from multirobust.errors import DataError, InputError
from multirobust.threats import Transformation

every_corruption = pytest.mark.parametrize("name", CORRUPTIONS)
every_severity = pytest.mark.parametrize("severity", SEVERITIES)
NOT_RISING = {
    "saturate": "two severities lower saturation, three raise it",
    "elastic_transform": "the affine map shrinks while the displacement grows",
    "frost": "the image gets weaker as the ice gets stronger",
    "spatter": "water at three severities, mud at two",
    "glass_blur": "the blur falls from 0.4 to 0.25 as a second round is added",
}
GRAY_STAYS = ("saturate",)
SIZES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "tiny": (3, 64, 64), "wide": (3, 12, 20)}


def pictures(*shape: int, count: int = 6, seed: int = 0) -> Tensor:
    """Smooth uint8-valued images with edges and color, floats in [0, 1], (count, *shape)."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    images = []
    for _ in range(count):
        phase = rng.uniform(0, 6, (channels, 1, 1))
        wave = 0.5 + 0.35 * np.sin(9 * rows * rng.uniform() + 8 * columns + phase)
        inside = (rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.06
        images.append(np.where(inside, 1 - wave, wave))
    return torch.from_numpy(np.rint(np.stack(images) * 255)).float() / 255


X = pictures(3, 32, 32)
Y = torch.arange(6) % 4


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corrupted(name: str, severity: int, x: Tensor = X, seed: int = 3) -> Tensor:
    y = torch.zeros(len(x), dtype=torch.int64)
    return Corruption(name, severity)(network(), x, y, generator=seeded(seed))


def as_bytes(x: Tensor) -> np.ndarray:
    """Return images as uint8 (b, h, w, c)."""
    return (x * 255).round().byte().permute(0, 2, 3, 1).numpy()


def cut(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def test_there_are_fifteen_and_four_extra_corruptions():
    assert len(COMMON) == 15
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    assert (*COMMON, *EXTRA) == tuple(CORRUPTIONS)


@every_corruption
def test_every_corruption_has_five_settings_for_each_of_three_sizes(name):
    kinds = (
        importlib.import_module(f"multirobust.attacks.corruptions.{kind}")
        for kind in ("noise", "blur", "weather", "digital", "extra")
    )
    (operation,) = (kind.OPERATIONS[name] for kind in kinds if name in kind.OPERATIONS)
    tables = operation.cifar, operation.tiny, operation.imagenet
    assert [len(table) for table in tables] == [5, 5, 5]
    for side, table in {8: 0, 32: 0, 45: 0, 46: 1, 64: 1, 119: 1, 120: 2, 224: 2}.items():
        for severity in SEVERITIES:
            assert operation.setting(severity, side=side) == tables[table][severity - 1]


@every_corruption
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_images_keep_their_shape_and_are_multiples_of_one_255th_in_the_box(name, shape):
    x = pictures(*shape, count=2)
    for severity in SEVERITIES:
        x_adv = corrupted(name, severity, x)
        assert x_adv.shape == x.shape
        assert x_adv.dtype == x.dtype
        assert torch.equal(x_adv, (x_adv * 255).round() / 255)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
    if shape[0] == 3 or name not in GRAY_STAYS:
        assert not torch.equal(x_adv, x)


@every_corruption
def test_the_same_generator_gives_the_same_bits_and_an_image_those_of_its_place(name):
    assert torch.equal(corrupted(name, 3), corrupted(name, 3))
    assert torch.equal(corrupted(name, 3)[:2], corrupted(name, 3, X[:2]))
    attack = Corruption(name, 3)
    assert torch.equal(attack(network(), X, Y), attack(network(), X, Y, generator=seeded(0)))


@pytest.mark.parametrize(
    "name", [n for n in CORRUPTIONS if n.endswith(("noise", "glass_blur", "snow", "fog", "frost"))]
)
def test_another_seed_gives_another_image_and_images_of_a_batch_differ(name):
    assert not torch.equal(corrupted(name, 3), corrupted(name, 3, seed=4))
    same = X[:1].expand(2, -1, -1, -1)
    first, second = corrupted(name, 3, same)
    assert not torch.equal(first, second)


@every_corruption
def test_the_mean_distance_to_the_image_rises_with_severity(name):
    x = pictures(3, 32, 32, count=12, seed=5)
    distance = [float((corrupted(name, s, x) - x).abs().mean()) for s in SEVERITIES]
    assert min(distance) > 0
    if name not in NOT_RISING:
        assert all(b >= 0.98 * a for a, b in itertools.pairwise(distance))
    assert distance[4] > distance[0] or name in ("elastic_transform", "spatter", "saturate")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_give_the_same_stored_image(dtype):
    x_adv = Corruption("contrast", 3)(network(), X.to(dtype), Y)
    assert x_adv.dtype == dtype
    assert np.array_equal(as_bytes(x_adv.float()), as_bytes(corrupted("contrast", 3)))


@every_severity
def test_contrast_is_the_closed_form(severity):
    kept = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    x = as_bytes(X) / 255.0
    mean = x.mean((1, 2), keepdims=True)
    assert np.array_equal(
        as_bytes(corrupted("contrast", severity)), cut((mean + kept * (x - mean)) * 255)
    )


@every_severity
def test_brightness_and_saturation_are_those_of_hsv(severity):
    hsv = color.rgb2hsv(as_bytes(X) / 255.0)
    bright, vivid = hsv.copy(), hsv.copy()
    bright[..., 2] = np.minimum(hsv[..., 2] + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 1)
    factor, gain = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    vivid[..., 1] = np.minimum(hsv[..., 1] * factor + gain, 1)
    for name, expected in {"brightness": bright, "saturate": vivid}.items():
        assert np.array_equal(
            as_bytes(corrupted(name, severity)), cut(color.hsv2rgb(expected) * 255)
        )


def test_brightness_of_a_gray_image_is_that_of_the_same_image_in_three_channels():
    x = pictures(1, 32, 32)
    three = corrupted("brightness", 2, x.expand(-1, 3, -1, -1))
    assert (three - corrupted("brightness", 2, x)).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(corrupted("saturate", 5, x), x)


@every_severity
def test_gaussian_and_speckle_noise_have_the_published_strength(severity):
    gray = np.full((400, 400, 1), 128, np.uint8)
    rng = np.random.default_rng(0)
    for name, scale in {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1],
        "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1] * 128 / 255,
    }.items():
        module = noise if name in noise.OPERATIONS else extra
        operation = module.OPERATIONS[name]
        found = operation.apply(gray, operation.cifar[severity - 1], rng) / 255
        assert found.std() == pytest.approx(scale, rel=0.01)  # 160,000 draws: 0.2 % is one sigma
        assert found.mean() == pytest.approx(128 / 255, abs=5 * scale / 400)


@every_severity
def test_shot_noise_keeps_the_mean_and_has_the_variance_of_its_photons(severity):
    photons = (500, 250, 100, 75, 50)[severity - 1]
    gray = np.full((400, 400, 1), 102, np.uint8)
    found = noise.shot_noise(gray, photons, np.random.default_rng(0)) / 255
    std = math.sqrt(0.4 / photons)
    assert found.mean() == pytest.approx(0.4, abs=5 * std / 400)
    assert found.std() == pytest.approx(std, rel=0.01)


@every_severity
def test_impulse_noise_sets_the_published_share_of_values_half_of_them_to_white(severity):
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    gray = np.full((400, 400, 3), 99, np.uint8)
    found = noise.impulse_noise(gray, amount, np.random.default_rng(0))
    slack = 5 * math.sqrt(amount / found.size)
    assert (found == 255).mean() == pytest.approx(amount / 2, abs=slack)
    assert (found == 0).mean() == pytest.approx(amount / 2, abs=slack)
    assert set(np.unique(found)) == {0, 99, 255}


@every_severity
def test_gaussian_blur_is_that_of_scikit_image(severity):
    sigma = (0.4, 0.6, 0.7, 0.8, 1)[severity - 1]
    expected = [
        cut(filters.gaussian(im / 255.0, sigma, channel_axis=-1) * 255) for im in as_bytes(X)
    ]
    assert np.array_equal(as_bytes(corrupted("gaussian_blur", severity)), np.stack(expected))


@every_severity
def test_jpeg_and_pixelate_are_those_of_pillow(severity):
    quality = (80, 65, 58, 50, 40)[severity - 1]
    small = int(32 * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    jpegs, blocks = [], []
    for image in map(Image.fromarray, as_bytes(X)):
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=quality)
        jpegs.append(np.asarray(Image.open(stored)))
        box = Image.Resampling.BOX
        blocks.append(np.asarray(image.resize((small, small), box).resize((32, 32), box)))
    assert np.array_equal(as_bytes(corrupted("jpeg_compression", severity)), np.stack(jpegs))
    assert np.array_equal(as_bytes(corrupted("pixelate", severity)), np.stack(blocks))


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"]
)
def test_a_constant_image_stays_constant_under_blur_and_displacement(name):
    x = torch.full((1, 3, 32, 32), 100 / 255)
    for severity in SEVERITIES:
        assert (corrupted(name, severity, x) - x).abs().max() <= 2 / 255 + 1e-6


def test_the_disk_is_symmetric_has_its_area_and_a_large_one_gains_weight_at_the_rim():
    kernel = disk(3, 0.1)
    assert np.array_equal(kernel, kernel[::-1])
    assert np.array_equal(kernel, kernel.T)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert (kernel > kernel.max() / 2).sum() == 29  # whole points within a radius of 3
    assert 1.005 < disk(8, 0.5).sum() < 1.02


@pytest.mark.parametrize(
    ("angle", "axis"), [(0, 1), (90, 0), (180, 1), (-90, 0)], ids=["right", "down", "left", "up"]
)
def test_a_trail_along_an_axis_is_a_one_sided_normal_mean(angle, axis):
    image = np.random.default_rng(0).random((9, 11, 2))
    weights = np.exp(-(np.arange(7) ** 2) / (2 * 1.5**2))
    kernel = np.concatenate([np.zeros(6), weights / weights.sum()])
    if angle in (180, -90):
        kernel = kernel[::-1]
    expected = ndimage.correlate1d(image, kernel, axis=axis, mode="nearest")
    np.testing.assert_allclose(trail(image, 3, 1.5, angle), expected, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.25, 1.75, 2.25])
@pytest.mark.parametrize("side", [8, 32, 33])
def test_a_clipped_zoom_is_the_middle_of_a_linear_zoom(side, factor):
    image = np.random.default_rng(0).random((side, side, 3))
    kept = math.ceil(side / factor)
    top = (side - kept) // 2
    zoomed = ndimage.zoom(image[top : top + kept, top : top + kept], (factor, factor, 1), order=1)
    trim = (len(zoomed) - side) // 2
    expected = zoomed[trim : trim + side, trim : trim + side]
    np.testing.assert_allclose(clipped_zoom(image, factor), expected, atol=1e-12)


def test_glass_blur_moves_pixels_by_at_most_what_its_rounds_allow_and_makes_no_new_ones():
    image = np.arange(32 * 32, dtype=np.int64).reshape(32, 32, 1) % 251
    x = image.astype(np.uint8)
    moved = glass_blur(x, (0.05, 1, 1), np.random.default_rng(0))
    assert set(np.unique(moved.astype(int))) <= {*range(251)}
    border = np.concatenate([x[:2].ravel(), x[:, :2].ravel()])
    still = np.concatenate([moved[:2].ravel(), moved[:, :2].ravel()])
    assert np.abs(still - border).max() < 1e-9 * 255  # the two first rows and columns stay


@pytest.mark.parametrize("decay", [1.75, 3])
def test_a_cloud_fills_the_unit_interval_and_is_rougher_for_a_smaller_decay(decay):
    cloud = plasma(32, decay, np.random.default_rng(0))
    assert cloud.shape == (32, 32)
    assert cloud.min() == 0
    assert cloud.max() == 1
    rough, smooth = (
        np.mean([np.abs(np.diff(plasma(32, d, np.random.default_rng(i)))).mean() for i in range(9)])
        for d in (decay, decay + 1)
    )
    assert rough > smooth


def test_fog_keeps_the_brightest_value_as_its_ceiling():
    x = X * 0.5
    for severity in SEVERITIES:
        assert corrupted("fog", severity, x).amax() <= x.amax() + 1e-6


def test_elastic_displacement_alone_is_bounded_and_zero_settings_change_nothing():
    ramp = np.tile(np.arange(32.0)[None, :, None] * 8, (32, 1, 3)).astype(np.uint8)
    rng = np.random.default_rng(0)
    still = digital.elastic_transform(ramp, (0, 0, 0), rng)
    np.testing.assert_allclose(still, ramp, atol=1e-9)
    strength, sigma = 0.1, 0.03
    moved = digital.elastic_transform(ramp, (strength, sigma, 0), rng)
    assert np.abs(moved - ramp)[4:-4, 4:-4].max() <= strength * 32 * 8
    assert np.abs(moved - ramp).max() > 1


def test_an_affine_map_takes_three_corners_to_where_they_were_moved():
    image = np.zeros((33, 33, 1))
    center, reach = 16, 11
    image[center + reach, center + reach] = 1
    moves = np.array([[2.0, -3.0], [0.0, 0.0], [0.0, 0.0]])
    rows, columns = np.mgrid[:33, :33].astype(float)
    moved = digital._affine(image, moves, rows, columns)[:, :, 0]
    assert np.unravel_index(moved.argmax(), moved.shape) == (27 - 3, 27 + 2)


def test_edges_are_one_pixel_wide_and_weak_ones_count_only_where_they_meet_a_strong_one():
    image = np.zeros((20, 20), np.uint8)
    image[:, 10:] = 200
    step = edges(image, low=50, high=150)
    assert step.sum() == 20
    assert step[:, 9:11].sum() == 20
    image[:, 10:] = 25  # Sobel's size is 4 * 25 = 100
    assert not edges(image, low=50, high=150).any()
    image[0, 10:] = 60
    assert edges(image, low=50, high=150).sum() >= 20


def test_chamfer_distances_are_those_of_the_moves_and_close_to_euclidean_ones():
    rims = np.zeros((41, 41), bool)
    rims[20, 20] = True
    found = distances(rims)
    assert found[20, 25] == 5
    assert found[22, 22] == pytest.approx(2.8, abs=1e-4)
    assert found[21, 22] == pytest.approx(2.1969, abs=1e-4)
    euclidean = np.minimum(ndimage.distance_transform_edt(~rims), 20)
    assert np.abs(found - euclidean).max() < 0.02 * 20
    assert (distances(np.zeros((5, 5), bool)) == 20).all()


def test_equalization_sends_the_lowest_level_to_0_and_the_highest_to_255_in_order():
    image = np.random.default_rng(0).integers(40, 90, (30, 30)).astype(np.uint8)
    found = equalized(image)
    assert found[image == image.min()].max() == 0
    assert found[image == image.max()].min() == 255
    order = np.argsort(image.ravel(), kind="stable")
    assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()
    constant = np.full((3, 3), 7, np.uint8)
    assert np.array_equal(equalized(constant), constant)


def test_mud_is_brown_where_it_covers_and_water_only_brightens():
    assert (corrupted("spatter", 2) >= X - 1 / 255 - 1e-6).all()
    mud, brown = as_bytes(corrupted("spatter", 5)).astype(float), np.array([63, 42, 20])
    clean = as_bytes(X).astype(float)
    hit = (np.abs(mud - clean) > 1).any(axis=-1)
    assert 0.005 < hit.mean() < 0.3
    assert (np.abs(mud - brown) <= 0.2 * np.abs(clean - brown) + 1.5)[hit].all()


def test_computed_frost_has_the_mean_color_and_contrast_of_a_photograph():
    ice = crystals(64, 64, np.random.default_rng(0))
    assert ice.min() >= 0
    assert ice.max() <= 255
    means = ((78, 149, 166), (201, 205, 214), (138, 153, 165), (112, 123, 135))
    assert min(np.abs(ice.mean((0, 1)) - mean).max() for mean in means) < 8


@pytest.fixture
def photographs(tmp_path):
    """A folder of five flat photographs in five grays."""
    for number, name in enumerate(PHOTOGRAPHS):
        pixels = np.full((300, 400, 3), 40 * (number + 1), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name, quality=100)
    return tmp_path


@every_severity
def test_frost_from_photographs_is_a_weighted_sum_of_image_and_photograph(photographs, severity):
    kept, share = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    attack = Corruption("frost", severity, frost_images=str(photographs))
    found = as_bytes(attack(network(), X, Y)).astype(int)
    candidates = np.stack([cut(kept * as_bytes(X) + share * 40 * (n + 1)) for n in range(5)])
    off = np.abs(candidates.astype(int) - found).max((2, 3, 4))
    assert (off.min(axis=0) <= 1).all()
    assert len(set(off.argmin(axis=0))) > 1


def test_frost_says_where_its_ice_comes_from(photographs):
    assert "frost_images='procedural'" in repr(Corruption("frost", 3))
    assert str(photographs) in repr(Corruption("frost", 3, str(photographs)))
    assert Corruption("frost", 3) == Corruption("frost", 3, "procedural")
    assert Corruption("frost", 3) != Corruption("frost", 3, str(photographs))
    with pytest.raises(InputError, match="belongs to 'frost'"):
        Corruption("fog", 3, str(photographs))


def test_missing_and_small_photographs_of_frost_are_clear_errors(photographs):
    for name in PHOTOGRAPHS:
        (photographs / name).unlink()
    attack = Corruption("frost", 3, str(photographs))
    with pytest.raises(DataError, match=r"must be a folder that holds frost1\.png"):
        attack(network(), X, Y)
    for name in PHOTOGRAPHS:
        Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(photographs / name)
    with pytest.raises(DataError, match="must be larger than the images"):
        attack(network(), X, Y)


def test_the_threat_is_the_name_and_the_severity():
    assert Corruption("fog", 4).threats == (Transformation("fog", 4.0),)
    assert repr(Corruption("fog", 4)) == "Corruption(name='fog', severity=4, frost_images=None)"
    assert hash(Corruption("fog", 4)) == hash(Corruption("fog", 4))


@pytest.mark.parametrize("severity", [0, 6, 2.5, True, "3"])
def test_a_severity_out_of_range_is_refused(as_installed, severity):
    with pytest.raises(InputError, match="severity must be 1, 2, 3, 4 or 5"):
        Corruption("fog", severity)


def test_an_unknown_name_is_refused_with_the_closest():
    with pytest.raises(InputError, match="Did you mean 'gaussian_noise'"):
        Corruption("gausian_noise", 1)


@pytest.mark.parametrize("shape", [(2, 32, 32), (3, 3, 32)])
def test_images_of_other_channels_or_too_few_pixels_are_refused(shape):
    with pytest.raises(InputError, match="1 \\(gray\\) or 3 \\(RGB\\)"):
        corrupted("fog", 1, torch.zeros(1, *shape))


def test_a_missing_dependency_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "multirobust.attacks.corruptions.weather", raising=False)
    monkeypatch.setitem(sys.modules, "skimage.color", None)
    with pytest.raises(InputError, match=r"pip install 'multirobust\[corruptions\]'"):
        corrupted("snow", 1)


@every_corruption
def test_model_images_and_labels_are_left_as_they_were(name):
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, y = X[:2].clone().requires_grad_(), Y[:2].clone()
    x_adv = Corruption(name, 5)(model, x, y)
    assert not x_adv.requires_grad
    assert torch.equal(x.detach(), X[:2])
    assert model.training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
