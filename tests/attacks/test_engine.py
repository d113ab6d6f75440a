"""The engine, driven by attacks that walk a known way through a model that breaks at a known place.

Pixel 0 of an image counts the questions that it takes; pixel 1 is its name.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from multirobust.attacks import PassMeter
from multirobust.attacks.engine import IterativeAttack, run_rows
from multirobust.errors import InputError
from multirobust.threats import Linf

BALL = Linf(1.0)
STEP = 1 / 64


@dataclass(frozen=True, kw_only=True)
class Walk(IterativeAttack):
    """Asks about x + STEP, x + 2 STEP, ... in pixel 0; records the target in pixel 2."""

    def begin(self, state, generator):
        return state | {"asked": torch.ones_like(state["y"])}

    def query(self, state):
        query = state["x"].clone()
        query[:, 0, 0, 0] += STEP * state["asked"]
        query[:, 0, 1, 0] = state["target"] / 16
        return query

    def advance(self, state, logits, gradient, generator):
        return state | {"asked": state["asked"] + 1}


@dataclass(frozen=True, kw_only=True)
class Inward(Walk):
    """Only queries with pixel 0 above 0.5 lie in its threat."""

    def within(self, state, query):
        return query[:, 0, 0, 0] > 0.5


@dataclass(frozen=True, kw_only=True)
class Climb(Walk):
    """Follows the sign of the gradient of the true logit, and remembers the gradient."""

    def begin(self, state, generator):
        return super().begin(state, generator) | {"seen": torch.zeros_like(state["x"])}

    def loss(self, state, logits):
        return logits.gather(1, state["y"][:, None]).squeeze(1)

    def query(self, state):
        return (super().query(state) + state["seen"]).clamp(0, 1)

    def advance(self, state, logits, gradient, generator):
        return super().advance(state, logits, gradient, generator) | {"seen": gradient}


@dataclass(frozen=True, kw_only=True)
class Draw(Walk):
    def begin(self, state, generator):
        drawn = torch.rand(len(state["x"]), generator=generator, device=generator.device)
        return super().begin(state, generator) | {"drawn": drawn}

    def query(self, state):
        query = super().query(state)
        query[:, 0, 1, 1] = state["drawn"]
        return query


class Fence(nn.Module):
    """Class 0, or class `winner` where pixel 0 is at least `height`; records batch sizes."""

    def __init__(self, height: float = 0.5, classes: int = 4, winner: int = 1):
        super().__init__()
        self.height, self.classes, self.winner = height, classes, winner
        self.sizes: list[int] = []
        self.differentiated: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        self.differentiated.append(x.requires_grad)
        order = torch.arange(self.classes, 0, -1, dtype=x.dtype) / 8  # 0 is first, then 1, ...
        logits = order + 0 * x.flatten(1)[:, :1]
        beyond = (x[:, :1, 0, 0] >= self.height).to(x.dtype)
        return logits + beyond * nn.functional.one_hot(torch.tensor(self.winner), self.classes)


def images(*questions: int) -> Tensor:
    """Images that break with so many questions at a fence of 0.5."""
    x = torch.zeros(len(questions), 1, 2, 2)
    x[:, 0, 0, 0] = 0.5 - STEP * torch.tensor(questions)
    x[:, 0, 0, 1] = torch.arange(len(questions)) / 64
    return x


def zeros(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long)


QUESTIONS = (3, 12, 1, 7, 30, 2, 2, 9, 10, 11, 1)
BUDGET = 10


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 11, 100])
def test_an_image_is_asked_about_until_it_breaks_and_no_more(batch_size):
    x, model = images(*QUESTIONS), Fence()
    found = run_rows(
        Walk(threat=BALL, iterations=BUDGET), model, x, zeros(x), batch_size=batch_size
    )
    assert sum(model.sizes) == sum(min(q, BUDGET) for q in QUESTIONS)
    expected = x.clone()
    for row, questions in enumerate(QUESTIONS):
        if questions <= BUDGET:
            expected[row, 0, 0, 0] = 0.5
    assert torch.equal(found, expected)


def test_the_batch_stays_full_while_images_wait_and_never_exceeds_its_size():
    x, model = images(*QUESTIONS), Fence()
    run_rows(Walk(threat=BALL, iterations=BUDGET), model, x, zeros(x), batch_size=4)
    last_full = max(i for i, size in enumerate(model.sizes) if size == 4)
    assert max(model.sizes) == 4
    assert model.sizes[:last_full] == [4] * last_full
    assert len(model.sizes) < 2 * sum(min(q, BUDGET) for q in QUESTIONS) / 4


@pytest.mark.parametrize("batch_size", [2, 64])
def test_what_stands_is_tried_with_every_target_and_restart(batch_size):
    x, model = images(3, 30), Fence()
    attack = Walk(threat=BALL, iterations=4, targets=3, restarts=2)
    run_rows(attack, model, x[1:], zeros(x[1:]), batch_size=batch_size)
    ranking = 1
    assert sum(model.sizes) == ranking + 4 * 3 * 2


def test_a_broken_image_takes_all_its_rows_out_of_batch_and_queue():
    x, model = images(3), Fence()
    attack = Walk(threat=BALL, iterations=4, targets=3, restarts=5)
    run_rows(attack, model, x, zeros(x), batch_size=2)
    assert model.sizes == [1, 2, 2, 2]  # the ranking, then two rows of one image three times


def test_targets_are_the_wrong_classes_from_the_greatest_logit_down():
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Listening(Walk):
        def begin(self, state, generator):
            seen.extend(state["target"].tolist())
            return super().begin(state, generator)

    x = images(30, 30)
    run_rows(Listening(threat=BALL, iterations=1, targets=9), Fence(), x, zeros(x), batch_size=1)
    assert seen == [1, 1, 2, 2, 3, 3]
    seen.clear()
    run_rows(Listening(threat=BALL, iterations=1), Fence(), x, zeros(x), batch_size=1)
    assert seen == [0, 0]  # untargeted: the true class


def test_rows_know_how_often_they_were_tried():
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Listening(Walk):
        def begin(self, state, generator):
            seen.extend(zip(state["target"].tolist(), state["restart"].tolist(), strict=True))
            return super().begin(state, generator)

    x = images(30)
    attack = Listening(threat=BALL, iterations=1, targets=2, restarts=3)
    run_rows(attack, Fence(), x, zeros(x), batch_size=4)
    assert seen == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)]


def test_of_two_rows_that_break_an_image_at_once_the_first_is_kept_whole():
    x, model = images(3), Fence()
    attack = Walk(threat=BALL, iterations=4, targets=3)
    found = run_rows(attack, model, x, zeros(x), batch_size=3)
    assert found[0, 0, 1, 0] == 1 / 16  # the first target's mark


def test_a_query_outside_the_threat_breaks_nothing():
    x, model = images(3), Fence()
    found = run_rows(Inward(threat=BALL, iterations=9), model, x, zeros(x), batch_size=1)
    assert found[0, 0, 0, 0] == 0.5 + STEP
    assert len(model.sizes) == 4


def test_an_attack_without_a_loss_costs_no_backward_pass_and_builds_no_graph():
    x, model = images(5, 30), Fence()
    meter = PassMeter(model)
    with meter:
        run_rows(Walk(threat=BALL, iterations=8), model, x, zeros(x), batch_size=2)
    assert (meter.forwards, meter.backwards) == (5 + 8, 0)
    assert not any(model.differentiated)


def test_an_attack_with_a_loss_costs_a_backward_pass_a_question():
    x, model = images(5, 30), Fence()
    meter = PassMeter(model)
    with meter:
        run_rows(Climb(threat=BALL, iterations=8), model, x, zeros(x), batch_size=2)
    assert (meter.forwards, meter.backwards) == (5 + 8, 5 + 8)


class Root(nn.Module):
    """Finite logits whose gradient is NaN in pixel 3, which is at zero, and 1 in pixel 2."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)
        first = 9 + pixels[:, 2] + 0 * pixels[:, 3].sqrt()
        return torch.stack((first, 0 * first), dim=1)


def test_a_gradient_that_is_not_a_number_arrives_as_zero():
    x = images(30)
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Listening(Climb):
        def advance(self, state, logits, gradient, generator):
            seen.append(gradient.flatten(1))
            return super().advance(state, logits, gradient, generator)

    run_rows(Listening(threat=BALL, iterations=2), Root(), x, zeros(x), batch_size=1)
    assert seen[0].tolist() == [[0, 0, 1, 0]]


class Coin(nn.Module):
    """Cycles through the heights of a fence, with a gradient of 1, 2, ... in pixel 3."""

    def __init__(self, *heights: float):
        super().__init__()
        self.heights, self.asked, self.sizes = heights, 0, []

    def forward(self, x: Tensor) -> Tensor:
        turn = self.asked % len(self.heights)
        self.asked, pixels = self.asked + 1, x.flatten(1)
        self.sizes.append(len(x))
        beyond = 3.0 * (pixels[:, 0].detach() >= self.heights[turn])
        slope = (turn + 1) * (pixels[:, 3] - pixels[:, 3].detach())
        return torch.stack((1 + slope, beyond), dim=1)


@pytest.mark.parametrize("kind", [Walk, Climb])
@pytest.mark.parametrize(("heights", "questions"), [((0.5, 2.0), 3), ((0.5, 2.0, 2.0, 2.0), None)])
def test_the_mean_of_the_logits_of_a_randomized_model_decides(kind, heights, questions):
    """Wrong by 2 in one pass and right by 1 in the others: wrong in the mean of two, not four."""
    x, model = images(3), Coin(*heights)
    eot = len(heights)
    found = run_rows(kind(threat=BALL, iterations=5, eot=eot), model, x, zeros(x), batch_size=1)
    assert torch.equal(found, x) is (questions is None)
    assert len(model.sizes) == eot * (questions or 5)


def test_the_gradient_of_a_randomized_model_is_the_mean_of_its_passes():
    x, seen = images(30), []

    @dataclass(frozen=True, kw_only=True)
    class Listening(Climb):
        def advance(self, state, logits, gradient, generator):
            seen.append(gradient.flatten(1))
            return super().advance(state, logits, gradient, generator)

    attack = Listening(threat=BALL, iterations=2, eot=4)
    run_rows(attack, Coin(2.0, 2.0, 2.0, 2.0), x, zeros(x), batch_size=1)
    assert seen[0].tolist() == [[0, 0, 0, 2.5]]


class Hole(Fence):
    """Returns NaN for a wrong class where pixel 0 is at least `height`."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.where((x[:, :1, 0, 0] >= self.height), torch.nan, logits)


def test_a_query_whose_logits_are_not_numbers_is_returned_for_all_to_see():
    x, model = images(3, 30), Hole()
    found = run_rows(Walk(threat=BALL, iterations=9), model, x, zeros(x), batch_size=2)
    assert found[:, 0, 0, 0].tolist() == [0.5, x[1, 0, 0, 0].item()]


class Severed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)


def test_a_model_without_gradient_is_an_error_for_an_attack_that_needs_one():
    x = images(3)
    with pytest.raises(InputError, match="no gradient leads back"):
        run_rows(Climb(threat=BALL, iterations=2), Severed(), x, zeros(x), batch_size=1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_equal_seeds_give_equal_bits_and_another_seed_others(batch_size):
    x, attack = images(*QUESTIONS), Draw(threat=BALL, iterations=BUDGET)

    def found(seed):
        generator = torch.Generator().manual_seed(seed)
        return run_rows(attack, Fence(), x, zeros(x), batch_size=batch_size, generator=generator)

    assert torch.equal(found(0), found(0))
    assert not torch.equal(found(0), found(1))
    default = run_rows(attack, Fence(), x, zeros(x), batch_size=batch_size)
    assert torch.equal(found(0), default)


def test_calling_an_attack_runs_all_images_in_one_batch():
    x, model = images(3, 4, 30), Fence()
    attack = Walk(threat=BALL, iterations=5)
    found = attack(model, x, zeros(x))
    assert model.sizes == [3, 3, 3, 2, 1]
    assert torch.equal(found, run_rows(attack, Fence(), x, zeros(x), batch_size=1))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_images_are_attacked_at_least_in_float32(dtype, expected):
    x = images(3).to(dtype)
    found = run_rows(Walk(threat=BALL, iterations=4), Fence(), x, zeros(x), batch_size=1)
    assert found.dtype == expected
    assert found[0, 0, 0, 0] == 0.5


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 0}, {"targets": -1}, {"restarts": 0}, {"eot": 0}],
    ids=lambda d: next(iter(d)),
)
def test_numbers_out_of_range_are_an_error_that_names_them(wrong):
    with pytest.raises(InputError, match=f"Walk: {next(iter(wrong))} must be at least"):
        Walk(**{"threat": BALL, "iterations": 1, **wrong})


def test_a_batch_size_below_one_is_an_error():
    x = images(1)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        run_rows(Walk(threat=BALL, iterations=1), Fence(), x, zeros(x), batch_size=0)
