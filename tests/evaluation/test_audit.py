from __future__ import annotations

import re
from ast import literal_eval
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linear_oracles import network
from multirobust.attacks import DLR, CrossEntropy, Margin
from multirobust.data import Split, digits
from multirobust.errors import InputError
from multirobust.evaluation import AttackColumn, Outcomes, State
from multirobust.evaluation.audit import Finding, audit_model, audit_outcomes
from multirobust.models import Normalize, build
from multirobust.threats import L1, L2, Linf

LINF = {"linf": Linf(0.15)}
BALLS = {"linf": Linf(0.15), "l2": L2(0.75), "l1": L1(2.5)}


def codes(findings: tuple[Finding, ...]) -> list[str]:
    assert all(finding.message.endswith(".") for finding in findings)
    return sorted(finding.code for finding in findings)


def message(findings: tuple[Finding, ...], code: str) -> str:
    (finding,) = (finding for finding in findings if finding.code == code)
    return finding.message


@pytest.fixture(scope="module")
def split() -> Split:
    return digits().test


def trained(model: nn.Module, steps: int, *, fgsm: float = 0.0) -> nn.Module:
    """Fit a model to 300 digits by full-batch Adam, on FGSM images of the given radius."""
    data = digits(train_limit=300).train
    x, y = data.floats(), data.labels
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    model.train()
    for _ in range(steps):
        seen = x
        if fgsm:
            seen = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(seen), y), seen)
            seen = (x + fgsm * gradient.sign()).clamp(0, 1)
        optimizer.zero_grad()
        F.cross_entropy(model(seen), y).backward()
        optimizer.step()
    return model.eval()


def linear_model(*before: nn.Module) -> nn.Module:
    layer = nn.utils.skip_init(nn.Linear, 64, 10)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return trained(nn.Sequential(*before, nn.Flatten(), layer), 40)


def convolutional(**options: float) -> nn.Module:
    model = build("small_cnn", classes=10, channels=1, widths=(8, 16), seed=0)
    return trained(model, 60, **options)


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    return linear_model()


@pytest.fixture(scope="module")
def cnn() -> nn.Module:
    return convolutional()


class With(nn.Module):
    """A model with something before or after it."""

    def __init__(self, model: nn.Module, *, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.model, self.before, self.after = model, before, after
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


class Noisy(nn.Module):
    """Adds noise from the global generator, as a randomized defense does."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.05 * torch.randn_like(x)


class Reversed(torch.autograd.Function):
    """Does nothing, with a gradient that points the wrong way."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def shattered(x: Tensor) -> Tensor:
    """Move pixels by at most 0.01, with a slope of about 20 and changing sign."""
    return x + 0.01 * torch.sin(2000 * x)


# Sound models


@pytest.mark.parametrize("name", ["linear", "hardened"])
def test_a_sound_model_has_no_finding_in_any_norm(name, split, linear):
    model = linear if name == "linear" else convolutional(fgsm=0.1)
    assert audit_model(model, split, images=24, threats=BALLS) == ()


@pytest.mark.parametrize("name", ["cnn", "untrained", "log_softmax", "half"])
def test_a_sound_model_has_no_finding(name, split, cnn):
    models = {
        "cnn": cnn,
        "untrained": network(1, classes=10).eval(),
        "log_softmax": With(cnn, after=lambda z: z.log_softmax(1)),
        "half": With(cnn, after=lambda z: z.bfloat16()),
    }
    assert audit_model(models[name], split, threats=LINF) == ()


@pytest.mark.parametrize("images", [1, 2, 16])
def test_few_images_are_no_ground_for_a_finding(images, split):
    assert audit_model(network(1, classes=10).eval(), split, images=images, threats=LINF) == ()


def test_a_linear_model_of_two_classes_has_no_finding():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 4, 4), generator=generator).to(torch.uint8)
    layer = nn.utils.skip_init(nn.Linear, 48, 2)
    nn.init.normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    with torch.no_grad():
        labels = model(pixels / 255).argmax(1)
    assert audit_model(model, Split(pixels, labels)) == ()


@pytest.mark.parametrize("objective", [CrossEntropy(), Margin(), DLR()], ids=repr)
def test_log_probabilities_have_the_losses_and_gradients_of_their_logits(objective):
    """Why log-probabilities are no finding: every loss here depends on differences of logits."""
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(20, 10, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (20,), generator=generator)
    logits.requires_grad_()
    losses = [objective.of(z, y, y) for z in (logits, logits.log_softmax(1))]
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


# What is found


def test_dropout_in_training_mode_is_found_with_its_randomness(split, linear):
    model = nn.Sequential(nn.Dropout(0.3), linear)
    model[0].train()
    findings = audit_model(model, split, threats={})
    assert codes(findings) == ["randomness", "training_mode"]
    assert "model.eval()" in message(findings, "training_mode")


def test_batch_norm_in_training_mode_is_found_with_its_batch_dependence(split, cnn):
    model = With(cnn)
    try:
        findings = audit_model(model.train(), split, threats={})
    finally:
        model.eval()
    assert codes(findings) == ["batch_dependence", "training_mode"]


def test_a_randomized_layer_is_found_and_no_comparison_is_made(split, cnn):
    findings = audit_model(nn.Sequential(Noisy(), cnn).eval(), split, threats=LINF)
    assert codes(findings) == ["randomness"]
    assert "autoattack_rand" in findings[0].message


def test_rounding_noise_is_no_randomness(split, linear):
    noisy = With(linear, after=lambda z: z * (1 + 1e-6 * torch.randn(len(z), 1)))
    assert audit_model(noisy.eval(), split, threats={}) == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_probabilities_are_found_in_every_precision(dtype, split, cnn):
    model = With(cnn, after=lambda z: z.softmax(1).to(dtype))
    assert "probabilities" in codes(audit_model(model, split, threats={}))


def bands() -> Split:
    """Colors in a band around another mean in each channel; the label is the brightest for it."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.tensor([50.0, 120.0, 200.0])[None, :, None, None]
    noise = torch.rand(200, 3, 1, 1, generator=generator) - 0.5
    pixels = (middle + 40 * noise).round().expand(200, 3, 4, 4)
    return Split(pixels.to(torch.uint8), noise[:, :, 0, 0].argmax(1))


class Brightest(nn.Module):
    """The channel whose mean is greatest."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_a_model_that_is_normalized_outside_is_found_and_the_normalization_mends_it():
    split = bands()
    (finding,) = audit_model(Brightest().eval(), split, threats={})
    assert finding.code == "normalized_outside"
    assert "with their own mean and std" in finding.message
    mean, std = re.search(r"Normalize\((\[.*?\]), (\[.*?\])\)", finding.message).groups()
    mended = nn.Sequential(Normalize(literal_eval(mean), literal_eval(std)), Brightest())
    assert audit_model(mended.eval(), split, threats={}) == ()


def test_a_model_of_pixels_in_0_to_255_is_found(split, cnn):
    findings = audit_model(With(cnn, before=lambda x: x / 255), split, threats={})
    assert codes(findings) == ["normalized_outside"]
    assert "with pixels in 0..255" in findings[0].message


def test_a_model_that_insists_on_pixels_up_to_one_is_sound(split, linear):
    def insist(x: Tensor) -> Tensor:
        if not (x.min() >= 0 and x.max() <= 1):
            raise ValueError("pixels outside [0, 1]")
        return x

    poor = With(linear, before=lambda x: insist(x).flip(2))
    assert audit_model(poor, split, threats={}) == ()


def test_a_missing_gradient_is_found(split, linear):
    detached = With(linear, before=lambda x: x.detach())
    foreign = With(linear, before=lambda x: torch.from_numpy(x.numpy()))
    for model in (detached, foreign):
        assert codes(audit_model(model, split, threats=LINF)) == ["no_gradients"]


def test_rounded_inputs_are_found_by_their_zero_gradients_and_by_what_breaks_them(split, cnn):
    model = With(cnn, before=lambda x: (8 * x).round() / 8)
    findings = audit_model(model, split, threats=LINF)
    masked = ["black_box_beats_white_box", "survives_large_radius", "zero_gradients"]
    assert codes(findings) == masked
    right = int((model(split.floats()).argmax(1) == split.labels).sum())
    everything = audit_model(model, split, images=len(split), threats={})
    told = message(everything, "zero_gradients")
    assert told.count(f"for {right} of {right} images (100.0 %)") == 2


def test_rounded_activations_within_a_network_are_found(split, cnn):
    model = deepcopy(cnn)
    for part in model.modules():
        if isinstance(part, nn.ReLU):
            part.register_forward_hook(lambda part, x, activation: (8 * activation).round() / 8)
    agree = model(split.floats()).argmax(1) == cnn(split.floats()).argmax(1)
    assert agree.float().mean() > 0.9
    findings = audit_model(model, split, threats=LINF)
    assert "zero_gradients" in codes(findings)
    assert "black_box_beats_white_box" in codes(findings)


def test_a_saturated_softmax_is_found_and_the_margin_recommended(split, cnn):
    findings = audit_model(With(cnn, after=lambda z: 1e4 * z), split, threats={})
    assert codes(findings) == ["zero_gradients"]
    assert "of the margin for 0 of" in findings[0].message
    assert "divide the logits" in findings[0].message


def test_nan_gradients_are_found(split, cnn):
    model = With(cnn, before=lambda x: x + 0 * x.sqrt())
    assert "nan_gradients" in codes(audit_model(model, split, threats={}))


def test_nan_and_infinite_logits_are_found_and_counted(split, cnn):
    def dark(z: Tensor, value: float) -> Tensor:
        return torch.where(torch.arange(len(z))[:, None] < 3, value, z)

    nan = With(cnn, after=lambda z: dark(z, torch.nan))
    assert message(audit_model(nan, split, threats={}), "nan_logits").startswith("3 of 64 images")
    infinite = With(cnn, after=lambda z: (50 * z).softmax(1).log())
    assert "infinite_logits" in codes(audit_model(infinite, split, threats={}))


def test_shattered_gradients_are_found_by_more_steps_that_do_not_help(split, cnn):
    findings = audit_model(With(cnn, before=shattered), split, threats=LINF)
    assert {"steps_do_not_help", "black_box_beats_white_box"} <= set(codes(findings))


def test_a_misleading_gradient_is_found_and_told_once_for_all_norms(split, cnn):
    findings = audit_model(With(cnn, before=Reversed.apply), split, images=24, threats=BALLS)
    assert "survives_large_radius" in codes(findings)
    assert len(set(codes(findings))) == len(findings)
    told = message(findings, "survives_large_radius")
    assert all(f"in {norm} at radius" in told for norm in BALLS)


# The conduct of the audit


def test_the_audit_leaves_model_and_global_generator_alone(split):
    model = nn.Sequential(Noisy(), convolutional()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    audit_model(model, split, images=16, threats=LINF)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is not None and p.requires_grad for p in model.parameters())


def test_the_same_seed_gives_the_same_findings_at_any_batch_size(split, cnn):
    model = With(cnn, after=lambda z: 1e4 * z)
    first, second, small = (
        audit_model(model, split, threats={}, batch_size=size) for size in (64, 64, 7)
    )
    assert first == second == small


def test_a_model_that_raises_is_a_finding(split, linear):
    def refuse(x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")

    findings = audit_model(With(linear, before=refuse), split)
    assert [finding.code for finding in findings] == ["raises"]
    assert "no such kernel" in findings[0].message


def test_where_memory_runs_out_the_batch_is_halved(split, linear):
    sizes: list[int] = []

    def small(x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > 16:
            raise torch.OutOfMemoryError("out of memory")
        return x

    assert audit_model(With(linear, before=small), split, threats={}) == ()
    assert sizes[:3] == [64, 32, 16]


@pytest.mark.parametrize("option", [{"images": 0}, {"batch_size": 0}, {"images": 2.5}], ids=str)
def test_numbers_out_of_range_are_named(option, split, linear):
    with pytest.raises(InputError, match=next(iter(option))):
        audit_model(linear, split, **option)


def test_answers_that_are_no_logits_are_an_input_error(split, linear):
    with pytest.raises(InputError, match=r"shape \(b, classes\)"):
        audit_model(With(linear, after=lambda z: {"logits": z}), split)


# Outcomes

S, B, E, SKIPPED = State.SURVIVED, State.BROKEN, State.ERROR, State.SKIPPED


def column(name: str, threat: str, radius: float, states: list[int], **options) -> AttackColumn:
    distances = options.pop("distances", [radius / 2 * (state == B) for state in states])
    return AttackColumn(name, threat, radius, np.array(states), np.array(distances), **options)


def outcomes(*columns: AttackColumn, wrong: int = 0, failed: int = 0, **manifest) -> Outcomes:
    """Outcomes whose first images are wrong without attack, and whose next ones are errors."""
    n = len(columns[0].states)
    predictions = np.zeros(n, dtype=np.int64)
    predictions[:wrong] = 1
    predictions[wrong : wrong + failed] = -1
    return Outcomes(np.arange(n), np.zeros(n, dtype=np.int64), predictions, columns, manifest)


def test_outcomes_without_contradiction_have_no_finding():
    found = outcomes(
        column("apgd", "linf", 0.03, [B, B, S, S, S]),
        column("square", "linf", 0.03, [B, S, S, S, S]),
        column("pgd_l1", "l1", 12.0, [B, B, B, B, S], distances=[0, 9, 9, 9, 0]),
        wrong=1,
    )
    assert audit_outcomes(found) == ()


@pytest.mark.parametrize(
    "option", [{"name": "square"}, {"name": "bb", "settings": "SaltAndPepper(steps=9)"}], ids=str
)
def test_images_that_only_a_black_box_attack_breaks_are_counted(option):
    blind = column(**{"threat": "linf", "radius": 0.03, "states": [B, B, B, B, S]} | option)
    found = outcomes(
        column("apgd", "linf", 0.03, [B, B, S, S, S]),
        column("fab", "linf", 0.03, [B, S, B, S, S]),
        blind,
        wrong=1,
    )
    told = message(audit_outcomes(found), "black_box_beats_white_box")
    assert "1 of 5 images (20.0 %)" in told


def test_an_attack_that_ended_in_an_error_does_not_lose_to_a_black_box():
    found = outcomes(column("apgd", "linf", 0.03, [E, S]), column("square", "linf", 0.03, [B, S]))
    assert "black_box_beats_white_box" not in codes(audit_outcomes(found))


def test_an_image_broken_within_a_ball_that_it_survived_is_counted():
    found = outcomes(
        column("pgd_linf", "linf", 0.1, [B, S, S, S, B]),
        column("pgd_l2", "l2", 0.5, [B, B, B, B, B], distances=[0, 0.05, 0.1, 0.2, 0.05]),
        wrong=1,
    )
    findings = audit_outcomes(found)
    assert codes(findings) == ["nested_norms"]
    assert findings[0].message.startswith("2 of 5 images (40.0 %) survive every attack in linf")


def test_a_small_linf_distance_breaks_in_l2_if_the_shape_is_known():
    columns = (
        column("pgd_linf", "linf", 0.1, [B, B, S], distances=[0.0499, 0.0501, 0]),
        column("pgd_l2", "l2", 0.5, [S, S, S]),
    )
    assert audit_outcomes(outcomes(*columns)) == ()
    findings = audit_outcomes(outcomes(*columns, shape=[1, 10, 10]))
    assert codes(findings) == ["nested_norms"]
    assert findings[0].message.startswith("1 of 3 images")


@pytest.mark.parametrize("pair", [("linf", "l2"), ("linf", "l1"), ("l2", "l1"), ("l1", "linf")])
def test_nested_balls_are_compared_by_the_norm_inequalities(pair):
    """A uniform shift attains the inequality towards l1, a single pixel that towards linf."""
    shape, (found, held) = (3, 4, 4), pair
    balls = {"linf": Linf, "l2": L2, "l1": L1}
    x = torch.full((1, *shape), 0.5)
    shifted = x + 0.1
    if pair == ("l1", "linf"):
        shifted = x.clone()
        shifted[0, 0, 0, 0] += 0.1
    distance = {name: float(ball(1.0).distance(shifted, x)) for name, ball in balls.items()}
    for slack, expected in ((1.001, ["nested_norms"]), (0.999, [])):
        broken = column("a", found, 9.0, [B], distances=[distance[found]])
        survived = column("b", held, distance[held] * slack, [S])
        assert codes(audit_outcomes(outcomes(broken, survived, shape=shape))) == expected


def test_errors_are_told_by_attack_with_their_reason():
    found = outcomes(
        column("apgd", "linf", 0.03, [E, S, S, E]),
        column("fab", "linf", 0.03, [E, E, E, S]),
        column("bb", "l2", 0.5, [E, S, S, S]),
        failed=1,
        errors={
            "clean": ["NaN among the logits"],
            "apgd": ["images outside the ball"],
            "fab": ["RuntimeError: no luck"],
        },
    )
    findings = audit_outcomes(found)
    assert codes(findings) == ["errors", "nan_logits", "outside_ball"]
    assert "apgd: 1 of 4 images (25.0 %)" in message(findings, "outside_ball")
    assert "fab: 2 of 4 images (50.0 %)" in message(findings, "errors")
    assert "no luck" in message(findings, "errors")
    assert "bb" not in message(findings, "errors")


@pytest.mark.parametrize(
    ("reasons", "code"),
    [
        (["NaN among the logits"], "nan_logits"),
        (["RuntimeError: boom"], "no_prediction"),
        (["NaN among the logits", "RuntimeError: boom"], "no_prediction"),
    ],
    ids=["nan", "raises", "both"],
)
def test_an_exception_is_not_called_nan(reasons, code):
    found = outcomes(column("a", "linf", 0.1, [E, S]), failed=1, errors={"clean": reasons})
    (finding,) = audit_outcomes(found)
    assert finding.code == code
    assert finding.message.startswith("1 of 2 images (50.0 %) have no clean prediction, such as")
    assert repr(reasons[-1]) in finding.message


def test_an_image_that_an_attack_was_not_run_on_counts_neither_way():
    linf = column("apgd", "linf", 0.03, [SKIPPED, S])
    found = outcomes(linf, column("square", "linf", 0.03, [B, S]))
    assert audit_outcomes(found) == ()
    found = outcomes(column("pgd_l1", "l1", 0.02, [B, S], distances=[0.01, 0]), linf)
    assert audit_outcomes(found) == ()
