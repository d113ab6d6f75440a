from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from linear_oracles import HalfSpace, network
from multirobust.attacks import PGD, Attack, Restarts
from multirobust.config import AttackConfig, EvaluationConfig
from multirobust.data import Split
from multirobust.errors import InputError
from multirobust.evaluation import (
    NamedAttack,
    State,
    Suite,
    build_suite,
    check_model,
)
from multirobust.evaluation import evaluate_suite as evaluate_and_audit
from multirobust.threats import L1, L2, Linf, Threat

evaluate_suite = partial(evaluate_and_audit, audit=False)  # tested in test_audit.py
BALLS = (Linf(0.06), L2(0.25), L1(0.8, density=0.05))


def images(n: int = 40, *, channels: int = 1, size: int = 4, classes: int = 2) -> Split:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (n, channels, size, size), generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return Split(pixels.to(torch.uint8), labels)


def half_space() -> HalfSpace:
    weight = torch.randn(16, generator=torch.Generator().manual_seed(0))
    return HalfSpace(weight, -float(weight.sum()) / 2).eval()


def suite_of(*attacks: Attack) -> Suite:
    return Suite("test", tuple(NamedAttack(f"a{i}", attack) for i, attack in enumerate(attacks)))


def strong(threat: Threat) -> PGD:
    return PGD(threat=threat, steps=60, step_size=threat.radius / 8, keep="best")


def weak(threat: Threat = BALLS[0], **options: Any) -> PGD:
    return PGD(threat=threat, steps=2, step_size=0.02, **options)


@pytest.mark.parametrize("threat", BALLS, ids=lambda threat: threat.norm)
def test_the_broken_images_of_a_linear_model_are_those_of_the_closed_form(threat):
    model, split = half_space(), images()
    outcomes = evaluate_suite(model, split, suite_of(strong(threat)), batch_size=16)
    x, y = split.floats(), split.labels
    with torch.no_grad():
        score = model.score(x).double()
    margin = torch.where(y == 1, score, -score)
    gain = model.greatest_gain(threat, x, y)
    assert ((margin - gain).abs() > 1e-3 * gain).all(), "an image on the edge is no test"
    broken = np.where((margin < gain).numpy(), State.BROKEN, State.SURVIVED)
    np.testing.assert_array_equal(outcomes.columns[0].states, broken)
    assert 0 < (margin > 0).sum() < len(split)
    assert 0 < ((margin > 0) & (margin < gain)).sum() < (margin > 0).sum()


def test_a_wrong_clean_prediction_is_broken_by_every_attack_at_distance_zero():
    model, split = half_space(), images()
    outcomes = evaluate_suite(model, split, suite_of(*map(weak, BALLS)))
    wrong = outcomes.predictions != outcomes.labels
    assert wrong.any()
    for column in outcomes.columns:
        assert (column.states[wrong] == State.BROKEN).all()
        assert (column.distances[wrong] == 0).all()
        assert (column.distances[~wrong] > 0).all()
        assert (column.distances <= column.radius * (1 + 1e-6)).all()


@dataclass(frozen=True)
class Fails(Attack):
    """Does as another attack does, but raises where an image of the batch has a bright pixel."""

    inner: PGD
    error: type[BaseException] = RuntimeError
    calls: list[int] = field(default_factory=list, compare=False)

    @property
    def threats(self) -> tuple[Threat, ...]:
        return self.inner.threats

    def __call__(self, model, x, y, *, generator=None):
        self.calls.append(len(x))
        if (x[:, 0, 0, 0] > 0.9).any():
            raise self.error("no luck")
        return self.inner(model, x, y, generator=generator)


def test_an_image_whose_attack_raises_is_an_error_and_the_others_are_not():
    model, split = half_space(), images()
    attack = Fails(strong(BALLS[0]))
    lines: list[str] = []
    outcomes = evaluate_suite(model, split, suite_of(attack), batch_size=10, report=lines.append)
    whole = evaluate_suite(model, split, suite_of(attack.inner), batch_size=10)
    right = outcomes.predictions == outcomes.labels
    bad = bright(split) & right
    assert 0 < bad.sum() < 8
    column, expected = outcomes.columns[0].states, whole.columns[0].states
    np.testing.assert_array_equal(column == State.ERROR, bad)
    np.testing.assert_array_equal(column[~bad], expected[~bad])
    assert outcomes.manifest["errors"] == {"a0": ["RuntimeError: no luck"]}
    assert "ended in errors, such as RuntimeError: no luck" in lines[-1]
    union, known = outcomes.union(), whole.union()
    assert union.high - union.low > known.high - known.low
    assert union.range_high - union.range_low == pytest.approx(bad.sum() / len(split))


def test_an_attack_that_always_raises_is_not_tried_on_every_image():
    model, split = half_space(), Split(torch.full((300, 1, 4, 4), 255, dtype=torch.uint8), LABELS)
    attack = Fails(weak())
    outcomes = evaluate_suite(model, split, suite_of(attack))
    assert (outcomes.columns[0].states[outcomes.predictions == LABELS.numpy()] == 2).all()
    assert 8 <= len(attack.calls) <= 30


LABELS = torch.arange(300) % 2


class Clouded(nn.Module):
    """A linear model that answers NaN, or raises, for images with a bright first pixel."""

    def __init__(self, *, raises: bool = False):
        super().__init__()
        self.inner, self.raises = half_space(), raises

    def forward(self, x: Tensor) -> Tensor:
        dark = x[:, 0, 0, 0] > 0.9
        if self.raises and dark.any():
            raise RuntimeError("too bright")
        return torch.where(dark[:, None], torch.nan, self.inner(x))


def bright(split: Split) -> np.ndarray:
    return (split.floats()[:, 0, 0, 0] > 0.9).numpy()


def darkened_start() -> Split:
    """Images of which the first eight, which the front door looks at, are not bright."""
    split = images()
    order = torch.argsort(torch.from_numpy(bright(split)).int(), stable=True)
    moved = split.subset(order)
    assert 0 < bright(moved).sum() < 30
    return moved


def test_images_that_a_model_answers_with_nan_are_errors():
    split = darkened_start()
    outcomes = evaluate_suite(Clouded().eval(), split, suite_of(weak(random_start=False)))
    assert (outcomes.predictions[bright(split)] == -1).all()
    assert (outcomes.columns[0].states[bright(split)] == State.ERROR).all()
    assert (outcomes.columns[0].states[~bright(split)] != State.ERROR).sum() > 5
    assert outcomes.manifest["errors"]["clean"] == ["NaN among the logits"]
    assert outcomes.clean().high > outcomes.clean().low


def test_an_image_that_a_model_raises_on_is_an_error():
    split = darkened_start()
    outcomes = evaluate_suite(
        Clouded(raises=True).eval(), split, suite_of(weak(random_start=False)), batch_size=5
    )
    bad = bright(split)
    np.testing.assert_array_equal(outcomes.predictions == -1, bad)
    assert (outcomes.columns[0].states[bad] == State.ERROR).all()
    assert outcomes.manifest["errors"]["clean"] == ["RuntimeError: too bright"]


@pytest.mark.parametrize("raises", [False, True])
def test_where_the_image_at_fault_lies_does_not_matter(raises):
    order = torch.argsort(torch.from_numpy(bright(images())).int(), stable=True)
    for rows in (order, order.flip(0)):
        split = images().subset(rows)
        outcomes = evaluate_suite(
            Clouded(raises=raises).eval(), split, suite_of(weak(random_start=False)), limit=20
        )
        np.testing.assert_array_equal(outcomes.predictions == -1, bright(split)[:20])
        assert (outcomes.columns[0].states[bright(split)[:20]] == State.ERROR).all()
    assert bright(split)[:8].any()
    assert not bright(split)[:8].all()


class Cramped(nn.Module):
    """A linear model that has no memory for batches above a size."""

    def __init__(self, most: int):
        super().__init__()
        self.inner, self.most = half_space(), most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 9 GiB")
        return self.inner(x)


def test_memory_for_fewer_images_than_the_front_door_asks_about_is_enough():
    lines: list[str] = []
    suite = suite_of(weak(random_start=False))
    outcomes = evaluate_suite(
        Cramped(3).eval(), images(), suite, batch_size=16, report=lines.append
    )
    known = evaluate_suite(half_space(), images(), suite, batch_size=2)
    np.testing.assert_array_equal(outcomes.columns[0].states, known.columns[0].states)
    assert [line for line in lines if "out of memory" in line][-1].endswith("batches of 2 images")


def test_no_memory_for_one_image_is_not_called_a_wrong_shape():
    with pytest.raises(torch.OutOfMemoryError, match="9 GiB"):
        evaluate_suite(Cramped(0).eval(), images(), suite_of(weak()))


def test_what_a_model_raised_on_all_images_is_quoted_as_a_sentence():
    model = Answers(partial(_raise, RuntimeError("boom"))).eval()
    with pytest.raises(InputError, match=r"shape \(1, 4, 4\) .* RuntimeError: boom\. Build it"):
        evaluate_suite(model, images(), suite_of(weak()))


def _raise(error: Exception, x: Tensor) -> Tensor:
    raise error


@dataclass(frozen=True)
class Leaves(Attack):
    """Returns what it is told to, whatever the ball."""

    threat: Threat
    change: Any

    @property
    def threats(self) -> tuple[Threat, ...]:
        return (self.threat,)

    def __call__(self, model, x, y, *, generator=None):
        return self.change(x)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: 1 - x, "images outside the ball"),
        (lambda x: x + 0.05, "images outside the pixel box"),
        (lambda x: x * torch.nan, "no image: the attack found none to start from, or NaN"),
        (lambda x: x + torch.inf, "no image"),
        (lambda x: x[:, :, :2], "images of shape"),
        (lambda x: x[:0], "images of shape"),
        (lambda x: None, "TypeError"),
    ],
    ids=["ball", "box", "nan", "inf", "shape", "batch", "none"],
)
def test_an_attack_that_returns_no_valid_images_is_an_error(as_installed, change, why):
    model, split = half_space(), Split(torch.full((6, 1, 4, 4), 250, dtype=torch.uint8), Y)
    outcomes = evaluate_suite(model, split, suite_of(Leaves(BALLS[0], change)))
    right = outcomes.predictions == outcomes.labels
    assert right.any()
    assert (outcomes.columns[0].states[right] == State.ERROR).all()
    assert (outcomes.columns[0].distances == 0).all()
    assert any(why in line for line in outcomes.manifest["errors"]["a0"])


Y = torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_request_to_stop_is_not_taken_for_a_failed_attack(error):
    attack = Fails(weak(), error)
    with pytest.raises(error):
        evaluate_suite(half_space(), images(), suite_of(attack))


def test_the_same_seed_gives_the_same_outcomes_and_another_seed_other_images():
    model, split = network(1).eval(), images(24, size=8, classes=4)
    suite = suite_of(*(Restarts(weak(ball), 2) for ball in BALLS))

    def facts(seed: int) -> list[np.ndarray]:
        outcomes = evaluate_suite(model, split, suite, batch_size=10, seed=seed)
        return [a for c in outcomes.columns for a in (c.states, c.distances)]

    first, again, other = facts(1), facts(1), facts(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_batch_size_does_not_matter_to_an_attack_without_chance():
    model, split = half_space(), images()
    suite = suite_of(*(weak(ball, random_start=False) for ball in BALLS))
    one, other = (evaluate_suite(model, split, suite, batch_size=n) for n in (7, 40))
    np.testing.assert_array_equal(one.predictions, other.predictions)
    for a, b in zip(one.columns, other.columns, strict=True):
        np.testing.assert_array_equal(a.states, b.states)
        np.testing.assert_allclose(a.distances, b.distances, rtol=1e-5)


def test_the_first_images_of_an_evaluation_are_those_of_a_limited_one():
    model, split = half_space(), images()
    suite = suite_of(weak(random_start=False))
    whole, limited = (evaluate_suite(model, split, suite, limit=n) for n in (None, 9))
    assert len(limited) == 9
    np.testing.assert_array_equal(limited.columns[0].states, whole.columns[0].states[:9])
    assert len(evaluate_suite(model, split, suite, limit=10**9)) == len(split)


def test_passes_are_counted_for_each_image():
    model, split = half_space(), images()
    attack = Restarts(weak(), 3)
    outcomes = evaluate_suite(model, split, suite_of(attack), batch_size=16)
    right = (outcomes.predictions == outcomes.labels).mean()
    column = outcomes.columns[0]
    # Three starts of two steps, a choice among three, and the prediction that counts.
    assert column.forwards == pytest.approx(right * (3 * 2 + 3 + 1))
    assert column.backwards == pytest.approx(right * 3 * 2)
    assert column.settings == repr(attack)


def test_the_model_comes_back_as_it_was():
    model, split = network(1).eval(), images(12, size=8, classes=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_suite(model, split, suite_of(weak(), Fails(weak(BALLS[1]))))
    assert not any(part.training for part in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model._forward_hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_manifest_says_where_the_numbers_come_from():
    outcomes = evaluate_suite(
        half_space(), images(), suite_of(weak()), seed=5, manifest={"data": "d"}
    )
    facts = outcomes.manifest
    assert (facts["suite"], facts["seed"], facts["images"], facts["data"]) == ("test", 5, 40, "d")
    assert facts["errors"] == {}
    assert facts["versions"]["torch"] == torch.__version__
    assert {"commit", "device", "time"} <= set(facts)


def test_a_suite_by_name_runs_its_three_attacks():
    threats = {ball.norm: ball for ball in BALLS}
    suite = build_suite("quick", threats, EvaluationConfig(attack=AttackConfig()))
    outcomes = evaluate_suite(half_space(), images(6), suite)
    assert outcomes.threats == ("linf", "l2", "l1")
    assert outcomes.union().value <= min(outcomes.worst(t).value for t in outcomes.threats)


class Answers(nn.Module):
    """Returns what a function makes of the images."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


def constant(*logits: float):
    return lambda x: torch.tensor([logits]).expand(len(x), -1) + 0 * x.mean()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda x: x, "model must be a torch.nn.Module, got function"),
        (Answers(lambda x: x).eval(), r"logits of shape \(b, classes\), got \(8, 1, 4, 4\)"),
        (Answers(lambda x: None).eval(), r"logits of shape \(b, classes\), got NoneType"),
        (Answers(lambda x: x.flatten(1)[:4]).eval(), r"got \(4, 16\) for \(8, 1, 4, 4\)"),
        (Answers(constant(1.0)).eval(), "one logit for each class, got 1 logits .* at least 2"),
        (Answers(constant(torch.nan, 1.0)).eval(), None),
        (Answers(constant(torch.nan, torch.nan)).eval(), "must return finite logits"),
        (
            nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 2).eval()).eval(),
            None,
        ),
        (network(3).eval(), r"raised InputError: x must be images of shape \(b, 3, h, w\)"),
        (nn.Sequential(nn.Conv2d(3, 2, 1)).eval(), "it raised RuntimeError: .* 3 channels"),
        (nn.Linear(4, 2).double().eval(), "it raised RuntimeError: .*dtype"),
    ],
)
def test_what_is_no_classifier_of_these_images_is_one_clear_error(model, told):
    if told is None:
        check_model(model, images())
        return
    with pytest.raises(InputError, match=told):
        evaluate_suite(model, images(), suite_of(weak()))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Answers(constant(0.25, 0.75)).eval(), "got rows of probabilities .* drop the final"),
        (Answers(constant(3.0, 1.0)), "must be in evaluation mode, but the model is in training"),
    ],
)
def test_a_model_that_is_not_ready_for_use_is_an_error_to_training(model, told):
    with pytest.raises(InputError, match=told):
        check_model(model, images())


def test_a_part_in_training_mode_is_named():
    model = nn.Sequential(nn.Flatten(), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(InputError, match=r"but 1 is in training mode; call model\.eval\(\)"):
        check_model(model, images())


def test_labels_beyond_the_logits_are_told():
    with pytest.raises(InputError, match=r"got 2 logits where the labels go up to 5; .* 6 classes"):
        check_model(half_space(), Split(images(6).images, torch.arange(6)))


def test_a_model_that_hides_its_gradient_is_not_called_robust():
    model = Answers(lambda x: half_space()(x).detach()).eval()
    with pytest.raises(InputError, match="no gradient leads back"):
        evaluate_suite(model, images(), suite_of(weak()))


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_an_error(limit):
    with pytest.raises(InputError, match=r"count must lie in 1\.\.40"):
        evaluate_suite(half_space(), images(), suite_of(weak()), limit=limit)


def test_a_batch_size_below_one_is_an_error():
    with pytest.raises(InputError, match="batch_size must be a whole number"):
        evaluate_suite(half_space(), images(), suite_of(weak()), batch_size=0)


@pytest.mark.parametrize("threat", [L2(4.1), L1(16.1)], ids=["l2", "l1"])
def test_a_ball_that_holds_every_image_is_a_radius_of_the_wrong_scale(threat):
    told = rf"on the \[0, 1\] pixel scale, .* write {threat.radius:g} / 255, which is"
    with pytest.raises(InputError, match=told):
        evaluate_suite(half_space(), images(), suite_of(weak(threat)))
