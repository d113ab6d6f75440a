from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import multirobust.models
from multirobust.errors import InputError
from multirobust.models import MODELS, build
from multirobust.models.base import check_count

every_model = pytest.mark.parametrize("name", sorted(MODELS))
PARAMETERS = {
    "preact_resnet_18": 11_172_170,
    "preact_resnet_50": 23_513_162,
    "small_cnn": 242_474,
    "wrn_28_2": 1_467_610,
    "wrn_28_10": 36_479_194,
    "wrn_34_10": 46_160_474,
}


@dataclass(frozen=True)
class FakeData:
    classes: int = 7
    channels: int = 1
    mean: tuple[float, ...] = (0.3,)
    std: tuple[float, ...] = (0.4,)


@cache
def built(name: str) -> nn.Module:
    """A model with 10 classes that the tests share and must not change."""
    return build(name, classes=10).eval()


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_the_table_holds_the_models_of_the_golden_counts():
    assert MODELS.keys() == PARAMETERS.keys()


@every_model
def test_has_exactly_this_many_parameters_at_10_classes(name):
    assert sum(p.numel() for p in built(name).parameters()) == PARAMETERS[name]


@every_model
def test_the_logits_are_the_head_of_the_features(name):
    model = built(name)
    with torch.no_grad():
        features = model.features(images(2, 3, 8, 8))
        assert features.shape == (2, model.head.in_features)
        assert torch.equal(model.head(features), model(images(2, 3, 8, 8)))


@every_model
def test_takes_float64_and_has_a_finite_nonzero_input_gradient(name):
    model = build(name, classes=10).double()
    x = images(2, 3, 8, 8, dtype=torch.float64).requires_grad_()
    loss = F.cross_entropy(model(x), torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.dtype == torch.float64
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


@every_model
def test_treats_each_image_on_its_own_in_evaluation_mode(name):
    model, x = built(name), images(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            model(x), torch.cat([model(image[None]) for image in x]), rtol=1e-4, atol=1e-4
        )


@every_model
def test_repr_shows_name_classes_and_channels(name):
    assert f"{name}, classes=10, channels=3" in repr(built(name))


@every_model
def test_logits_have_a_sane_scale_at_the_start(name):
    """Kaiming initialization neither explodes nor vanishes, with the statistics of a batch."""
    model = build(name, classes=10)
    logits = model(images(8, 3, 8, 8)).detach()
    assert 0.05 < logits.std() < 5


SMALL = {
    "small_cnn": {"widths": (4, 8)},
    "preact_resnet_18": {"width": 4},
    "preact_resnet_50": {"width": 2},
    "wrn_28_2": {},
}


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (200, 4)])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (33, 32)])
def test_takes_any_class_count_channel_count_and_image_size(name, classes, channels, size):
    model = build(name, classes=classes, channels=channels, **SMALL[name]).eval()
    with torch.no_grad():
        assert model(images(2, channels, *size)).shape == (2, classes)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = build(name, classes=3, seed=5, **SMALL[name]).state_dict()
        torch.manual_seed(2)
        before = torch.get_rng_state()
        second = build(name, classes=3, seed=5, **SMALL[name]).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    other = build(name, classes=3, seed=6, **SMALL[name])
    differing = [
        not torch.equal(m.weight, first[f"{key}.weight"])
        for key, m in other.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    assert all(differing)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_convolutions_are_kaiming_normal_and_without_bias(name):
    model = build(name, classes=3)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            expected = (2 / fan_out) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.15)


def test_a_default_normalization_is_the_identity_and_a_given_one_is_applied():
    x = images(2, 3, 8, 8)
    plain = build("small_cnn", classes=3).eval()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normalizing = build("small_cnn", classes=3, mean=mean, std=std).eval()
    assert torch.equal(plain.normalize(x), x)
    normalized = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(normalizing(x), plain(normalized))


def test_small_cnn_costs_25_megaflops_for_a_32x32_image():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built("small_cnn")(images(1, 3, 32, 32))
    assert counter.get_total_flops() == 25_364_992


def test_the_deep_networks_cost_their_published_multiply_adds():
    """WRN-28-10: 5.2 billion multiply-adds; counted on 8x8 images, which cost a sixteenth."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built("wrn_28_10")(images(1, 3, 8, 8))
    assert counter.get_total_flops() * 16 / 2 == pytest.approx(5.25e9, rel=0.01)


def test_preact_resnet_50_is_made_of_16_bottlenecks_in_stages_of_3_4_6_3():
    blocks = [b for b in built("preact_resnet_50").trunk if hasattr(b, "residual")]
    kernels = {
        tuple(m.kernel_size[0] for m in block.residual if isinstance(m, nn.Conv2d))
        for block in blocks
    }
    assert kernels == {(1, 3, 1)}
    outputs = [block.residual[-1].out_channels for block in blocks]
    assert outputs == [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3


@pytest.mark.parametrize("name", ["preact_resnet_18", "preact_resnet_50", "wrn_28_2"])
def test_every_block_adds_its_residual_to_its_shortcut(name):
    """With the last convolution of each residual at zero, only the shortcuts are left."""
    model = build(name, classes=3).eval()
    blocks = [block for block in model.trunk if hasattr(block, "residual")]
    for block in blocks:
        nn.init.zeros_(block.residual[-1].weight)
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        expected = model.trunk[0](model.normalize(x))
        for block in blocks:
            if block.shortcut is not None:
                expected = block.shortcut(block.activation(expected))
        assert torch.equal(model.trunk[:-1](x), expected)


def test_a_builder_reads_what_is_not_given_from_the_data():
    model = multirobust.models.small_cnn(FakeData(), widths=(4,))
    assert (model.classes, model.channels) == (7, 1)
    assert repr(model.normalize) == "Normalize(mean=[0.3], std=[0.4])"
    assert multirobust.models.small_cnn(FakeData(), classes=3, widths=(4,)).classes == 3


def test_a_builder_and_build_give_the_same_model():
    by_name = build("preact_resnet_18", classes=3, channels=1, seed=4, width=4).state_dict()
    direct = multirobust.models.preact_resnet_18(classes=3, channels=1, seed=4, width=4)
    torch.testing.assert_close(dict(direct.state_dict()), dict(by_name), rtol=0, atol=0)


def test_the_models_of_the_table_are_attributes_of_the_package():
    assert all(getattr(multirobust.models, name) is builder for name, builder in MODELS.items())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("wrn2810", {"classes": 10}, "Unknown model: 'wrn2810'. Did you mean 'wrn_28_10'. Known:"),
        ("small_cnn", {"classes": 1}, "classes must be an integer of at least 2, got 1"),
        ("small_cnn", {"classes": True}, "classes must be an integer"),
        ("small_cnn", {"classes": 2, "seed": -1}, "seed must be an integer of at least 0, got -1"),
        ("small_cnn", {"classes": 2, "channels": 0}, "channels must be an integer of at least 1"),
        ("small_cnn", {"classes": 2, "mean": (0.5,)}, "mean and std must hold one number"),
        (
            "small_cnn",
            {"classes": 2, "mean": (0.5,), "std": (1.0,)},
            "each of the 3 channels, got 1; give channels=1",
        ),
        (
            "small_cnn",
            {"classes": 2, "width": (4,)},
            "Unknown option of small_cnn: 'width'. Did you mean 'widths'. Known: widths.",
        ),
        ("wrn_28_10", {"classes": 2, "depth": 4}, "Unknown option of wrn_28_10: .* Known: none."),
        ("small_cnn", {"classes": 2, "widths": ()}, "widths must be a sequence of one or more"),
        ("small_cnn", {"classes": 2, "widths": (4, 0)}, r"widths\[1\] must be an integer"),
        ("preact_resnet_18", {"classes": 2, "width": -1}, "width must be an integer of at least 1"),
    ],
)
def test_bad_arguments_are_one_clear_error(name, arguments, message):
    with pytest.raises(InputError, match=message):
        build(name, **arguments)


@pytest.mark.parametrize("value", [2.0, "10", None, True, [10]])
def test_a_count_that_is_no_integer_is_one_clear_error(value):
    with pytest.raises(InputError, match="classes must be an integer of at least 1, got"):
        check_count("classes", value, 1, "say 10")


def test_a_builder_without_classes_or_with_something_else_than_data_says_so():
    with pytest.raises(InputError, match="classes must be an integer of at least 2, got None"):
        multirobust.models.small_cnn()
    with pytest.raises(InputError, match="10 has no classes; give classes as a keyword"):
        multirobust.models.small_cnn(10)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 1, 8, 8), r"shape \(b, 3, h, w\) for this model, got \(2, 1, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), r"channels come second"),
        (torch.zeros(3, 8, 8), r"a single image is x\[None\]"),
        (torch.zeros(2, 3, 0, 8), "x must be images"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "got torch.uint8.*divide uint8 images by 255"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.float64), "x must be torch.float32 as this model is"),
    ],
    ids=["gray", "channels last", "one image", "empty", "uint8", "float64"],
)
def test_what_is_no_batch_of_its_images_is_one_clear_error(x, message):
    with pytest.raises(InputError, match=message):
        built("small_cnn")(x)


def test_autocast_is_no_reason_to_refuse_images():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert built("small_cnn")(images(2, 3, 8, 8).bfloat16()).isfinite().all()
