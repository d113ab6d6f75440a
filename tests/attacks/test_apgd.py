"""Auto-PGD: the schedule of the papers row by row, and the worst case of linear models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from linear_oracles import HalfSpace, network, random_images, random_tensor
from multirobust.attacks import (
    APGD,
    DLR,
    CrossEntropy,
    KLDivergence,
    Margin,
    PassMeter,
    TargetedDLR,
    attacking,
    input_gradient,
)
from multirobust.attacks.engine import State
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf, Threat

SHAPE = (2, 4, 4)
THREATS = [Linf(0.2), L2(0.8), L1(2.5)]
every_norm = pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
smooth_norms = pytest.mark.parametrize("threat", THREATS[:2], ids=lambda t: t.norm)
TARGETED = {"objective": TargetedDLR(), "targets": 9}
OBJECTIVES = {
    "ce-3": ({"objective": CrossEntropy()}, 3),
    "dlr-2": ({"objective": DLR()}, 2),
    "dlr-3": ({"objective": DLR()}, 3),
    "margin-5": ({"objective": Margin()}, 5),
    "targeted-2": (TARGETED, 2),
    "targeted-3": (TARGETED, 3),
    "targeted-5": (TARGETED, 5),
}
every_objective = pytest.mark.parametrize(
    ("settings", "classes"), OBJECTIVES.values(), ids=OBJECTIVES
)


def trace(attack: APGD, model, x: Tensor, y: Tensor, count: int | None = None) -> list[State]:
    """The states in which each query was asked, of rows that never leave; with "answer", a loss."""
    generator = torch.Generator().manual_seed(5)
    state = attack.begin({"x": x, "y": y, "target": y}, generator)
    states = []
    with attacking(model):
        for _ in range(count or attack.iterations):
            now = state
            gradient, logits = input_gradient(
                model, attack.query(now), lambda logits, now=now: attack.loss(now, logits)
            )
            states.append(now | {"answer": attack.loss(now, logits)})
            state = attack.advance(now, logits, gradient, generator)
    return [*states, state]


def rough_network():
    """A network in which steps of two radii overshoot, so that losses rise and fall."""
    model = network(channels=2, seed=4).double().eval()
    return model, random_images(7, *SHAPE, seed=8, dtype=torch.float64), torch.arange(7) % 4


def sizes_by_the_paper(losses: list[float], budget: int, radius: float) -> list[float]:
    """Step size of each step, from the losses of all queries: conditions 1 and 2 word by word."""
    positions = [0, 22]
    while positions[-1] < 100:
        positions.append(positions[-1] + max(positions[-1] - positions[-2] - 3, 6))
    checkpoints = [math.ceil(p * budget / 100) for p in positions]
    step, sizes, current = 2 * radius, [], list(losses)
    halved_last, best_last, j = False, None, 1
    for k in range(len(losses)):
        best = max(losses[: k + 1])
        if k == checkpoints[j]:
            first = checkpoints[j - 1]
            rises = sum(losses[i + 1] > current[i] for i in range(first, k))
            rarely = rises < 0.75 * (k - first)
            still = not halved_last and best_last is not None and best == best_last
            halved_last, best_last, j = rarely or still, best, j + 1
            if halved_last:
                step, current[k] = step / 2, best  # goes on from the best point
        sizes.append(step)
    return sizes


def scripted_losses(rows: int, count: int) -> Tensor:
    """Losses (count, rows) that rise ever more often from row to row; the last one stands still."""
    draw = torch.rand(count, rows, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    losses = torch.where(draw < torch.linspace(0.6, 1, rows), 1.0, -1.0).cumsum(0)
    losses[:, -1] = 3.0
    return losses


@smooth_norms
@pytest.mark.parametrize("iterations", [100, 40, 7])
def test_steps_are_halved_by_the_two_conditions_of_the_paper_row_by_row(threat, iterations):
    """The logits are made up: the attack is told the losses that it shall see."""
    rows = 30
    losses = scripted_losses(rows, iterations)
    x, y = torch.full((rows, *SHAPE), 0.5, dtype=torch.float64), torch.zeros(rows).long()
    attack = APGD(threat=threat, iterations=iterations, objective=Margin())
    generator = torch.Generator().manual_seed(5)
    state, sizes = attack.begin({"x": x, "y": y, "target": y}, generator), []
    for loss in losses:
        gradient = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        logits = torch.stack((torch.zeros_like(loss), loss), dim=1)
        state = attack.advance(state, logits, gradient, generator)
        sizes.append(state["step"])
    taken = torch.stack(sizes).T.tolist()
    for row in range(rows):
        expected = sizes_by_the_paper(losses[:, row].tolist(), iterations, threat.radius)
        assert taken[row] == expected
    assert len({tuple(row) for row in taken}) > (5 if iterations > 7 else 1), "rows should differ"


def test_checkpoints_of_a_hundred_iterations_are_those_of_the_paper():
    model, x, y = rough_network()
    states = trace(APGD(threat=L2(0.8), iterations=100), model, x, y)
    marks = [state["checkpoint"][0].item() for state in states]
    assert sorted(set(marks)) == [22, 41, 57, 70, 80, 87, 93, 99, 105]
    assert all(mark > state["steps"][0] - 1 for mark, state in zip(marks, states, strict=True))


@every_norm
def test_the_best_point_is_the_iterate_of_greatest_loss_with_its_gradient(threat):
    model, x, y = rough_network()
    states = trace(APGD(threat=threat, iterations=30), model, x, y)
    losses = torch.stack([state["answer"] for state in states[:-1]])
    assert torch.equal(states[-1]["best_loss"], losses.amax(0))
    best = states[-1]["best"]
    winners = losses.argmax(0)
    expected = torch.stack([states[k]["iterate"][row] for row, k in enumerate(winners)])
    assert torch.equal(best, expected)
    attack = APGD(threat=threat)
    with attacking(model):
        gradient, _ = input_gradient(model, best, lambda z: attack.loss(states[-1], z))
    torch.testing.assert_close(states[-1]["best_gradient"], gradient)


@every_norm
def test_every_iterate_lies_in_ball_and_box(threat):
    model, x, y = rough_network()
    for state in trace(APGD(threat=threat, iterations=30), model, x, y):
        assert state["iterate"].min() >= 0
        assert state["iterate"].max() <= 1
        assert (threat.distance(state["iterate"], x) <= threat.radius * (1 + 1e-6)).all()


@smooth_norms
def test_a_step_is_that_of_the_paper_with_its_momentum(threat):
    """z = P(x + step direction), then P(x + 0.75 (z - x) + 0.25 (x - before)); at first z."""
    model, x, y = rough_network()
    states = trace(APGD(threat=threat), model, x, y, 16)
    for k in range(16):
        now, after = states[k]["iterate"], states[k + 1]["iterate"]
        with attacking(model):
            gradient, _ = input_gradient(model, now, lambda z: CrossEntropy().of(z, y, y))
        direction = threat.ascent_direction(gradient, now)
        z = threat.project(now + 2 * threat.radius * direction, x)
        if k:
            z = threat.project(0.25 * now + 0.75 * z + 0.25 * (now - states[k - 1]["iterate"]), x)
        torch.testing.assert_close(after, z, rtol=0, atol=1e-9)


def test_sparsity_and_step_in_l1_follow_the_best_point():
    model, x, y = rough_network()
    pixels, radius = x[0].numel(), 2.5
    states = trace(APGD(threat=L1(radius), iterations=100), model, x, y)
    changed = torch.stack([(s["best"] != s["x"]).flatten(1).sum(1) for s in states]).double()
    restarted = 0
    for row in range(len(x)):
        before, step, moved = float(pixels), radius, 0.2 * pixels
        for k in range(100):
            if k and k % 4 == 0:
                count = changed[k + 1, row].item()
                fewer = count < 0.95 * before
                step = radius if fewer else max(step / 1.5, radius / 10)
                before, moved, restarted = count, count / 1.5, restarted + fewer
            assert states[k + 1]["step"][row].item() == pytest.approx(step)
            assert states[k + 1]["moved"][row].item() == pytest.approx(moved)
    assert 0 < restarted < 24 * len(x)


def test_an_l1_step_moves_the_pixels_of_largest_gradient_that_the_box_lets_move():
    x = torch.full((1, 1, 2, 5), 0.5, dtype=torch.float64)
    x[0, 0, 0, :2] = 1  # the two largest gradients point out of the box
    slope = torch.tensor([9.0, -8.0, 7.0, -6.0, 5, 4, 3, 2, 1, 0]).double()
    slope[1] = 8
    model = HalfSpace(slope)
    attack = APGD(threat=L1(0.5))
    y = torch.zeros(1, dtype=torch.long)
    state = attack.begin({"x": x, "y": y, "target": y}, torch.Generator().manual_seed(0))
    state |= {"iterate": x, "previous": x, "best": x}
    with attacking(model):
        gradient, logits = input_gradient(model, x, lambda z: attack.loss(state, z))
    after = attack.advance(state, logits, gradient, torch.Generator())
    moved = (after["iterate"] - x).flatten()
    assert moved.tolist() == pytest.approx([0, 0, 0.25, -0.25, 0, 0, 0, 0, 0, 0])


def phases(iterations: int) -> list[tuple[float, int]]:
    """Radius, in radii of the threat, and queries of each phase, as published: n steps, n + 1."""
    steps = iterations - 3
    first = 0 if steps == 1 else math.ceil(round(0.3 * steps, 9))
    return [(3, first + 1), (2, first + 1), (1, steps - 2 * first + 1)]


@pytest.mark.parametrize("iterations", [103, 40, 5, 4, 3])
def test_a_wide_attack_narrows_its_ball_and_goes_on_from_the_best_point(iterations):
    model, x, y = rough_network()
    attack = APGD(threat=L1(1.0), iterations=iterations, wide=True)
    states = trace(attack, model, x, y)
    if iterations == 103:
        assert phases(iterations) == [(3, 31), (2, 31), (1, 41)]
    start, before = 0, []
    for radius, length in phases(iterations):
        asked = states[start : start + length]
        for state in asked:
            size = L1(1.0).distance(state["iterate"], x)
            assert (size <= radius * (1 + 1e-6)).all()
        assert size.amax() > 0.99 * radius
        inside = attack.within(asked[0], asked[0]["iterate"])
        assert inside.tolist() == [radius == 1] * len(x)
        if start:
            losses = torch.stack([state["answer"] for state in before])
            best = [before[k]["iterate"][row] for row, k in enumerate(losses.argmax(0))]
            torch.testing.assert_close(
                asked[0]["iterate"],
                L1(float(radius)).project(torch.stack(best), x),
                rtol=0,
                atol=1e-9,
            )
        before, start = asked, start + length
    assert start == iterations


def test_sparsity_and_step_of_a_wide_attack_are_reviewed_as_published():
    """Of 200 steps, every second of the first two phases and every third of the last."""
    model, x, y = rough_network()
    states = trace(APGD(threat=L1(1.0), iterations=203, wide=True), model, x, y)
    start = 0
    for radius, length in phases(203):
        every = int(0.04 * (length - 1))
        assert every == (3 if radius == 1 else 2)
        changed = (states[start]["iterate"] != x).flatten(1).sum(1).double()
        step, moved = torch.full_like(changed, radius), changed / 1.5
        for k in range(length - 1):
            if k and k % every == 0:
                best = states[start + k + 1]["best"]
                count = (best != x).flatten(1).sum(1).double()
                fewer = count < 0.95 * changed
                step = torch.where(fewer, radius, (step / 1.5).clamp(min=radius / 10))
                changed, moved = count, count / 1.5
            after = states[start + k + 1]
            torch.testing.assert_close(after["step"], step)
            torch.testing.assert_close(after["moved"], moved)
        start += length


def test_an_image_that_only_the_wide_balls_break_stands():
    x, y = torch.full((1, *SHAPE), 0.5), torch.tensor([0])
    model = HalfSpace(torch.ones(SHAPE), bias=-16 - 1.5)  # l1 distance 1.5
    for radius, breaks in ((1.4, False), (1.6, True)):
        meter = PassMeter(model)
        with meter:
            x_adv = APGD(threat=L1(radius), iterations=103, wide=True)(model, x, y)
        assert (model(x_adv).argmax(1) != y).item() is breaks
        assert torch.equal(x_adv, x) is not breaks
        assert meter.forwards == 103 if not breaks else 62 < meter.forwards < 103
        assert L1(radius).distance(x_adv, x) <= radius * (1 + 1e-6)


def test_rows_of_a_wide_attack_in_three_phases_share_a_batch():
    model, x, y = rough_network()
    attack = APGD(threat=L1(1.0), iterations=60, wide=True)
    alone = [trace(attack, model, x[i : i + 1], y[i : i + 1]) for i in range(3)]
    ages = (2, 14, 33)
    names = [name for name in alone[0][0] if name != "answer"]
    state = {
        name: torch.cat([rows[age][name] for rows, age in zip(alone, ages, strict=True)])
        for name in names
    }
    with attacking(model):
        for step in range(1, 26):
            now = state
            gradient, logits = input_gradient(
                model, now["iterate"], lambda z, now=now: attack.loss(now, z)
            )
            state = attack.advance(now, logits, gradient, torch.Generator())
            for row, (states, age) in enumerate(zip(alone, ages, strict=True)):
                for name in ("phase", "step", "iterate"):
                    torch.testing.assert_close(
                        state[name][row : row + 1], states[age + step][name], atol=1e-6, rtol=0
                    )


@every_norm
@every_objective
def test_breaks_a_linear_model_where_the_optimum_does_and_only_there(threat, settings, classes):
    """The bias of a model puts its boundary at a share of the greatest gain of one image."""
    weight = random_tensor(*SHAPE, seed=3, dtype=torch.float64)
    x, y = random_images(1, *SHAPE, seed=5, dtype=torch.float64), torch.tensor([0])
    free = HalfSpace(weight, classes=classes)
    gain = free.greatest_gain(threat, x, y)
    reached = 0.97 if threat.norm == "l1" else 0.99  # the smallest l1 step is a tenth of the radius
    for share, iterations, breaks in ((reached, 60, True), (1 + 1e-5, 5, False)):
        bias = -(free.score(x) + share * gain).item()
        model = HalfSpace(weight, bias=bias, classes=classes)
        x_adv = APGD(threat=threat, iterations=iterations, **settings)(model, x, y)
        assert (model(x_adv).argmax(1) != y).item() is breaks
        assert torch.equal(x_adv, x) is not breaks
        assert threat.distance(x_adv, x) <= threat.radius * (1 + 1e-6)


@every_norm
def test_a_row_moves_on_as_if_it_were_alone(threat):
    """Rows that are 0, 7 and 25 questions old share a batch."""
    model, x, y = rough_network()
    attack = APGD(threat=threat, iterations=60)
    alone = [trace(attack, model, x[i : i + 1], y[i : i + 1]) for i in range(3)]
    ages = (0, 7, 25)
    names = [name for name in alone[0][0] if name != "answer"]
    state = {
        name: torch.cat([rows[age][name] for rows, age in zip(alone, ages, strict=True)])
        for name in names
    }
    with attacking(model):
        for step in range(1, 36):
            now = state
            gradient, logits = input_gradient(
                model, now["iterate"], lambda z, now=now: attack.loss(now, z)
            )
            state = attack.advance(now, logits, gradient, torch.Generator())
            for row, (states, age) in enumerate(zip(alone, ages, strict=True)):
                torch.testing.assert_close(state["step"][row : row + 1], states[age + step]["step"])
                torch.testing.assert_close(
                    state["iterate"][row : row + 1],
                    states[age + step]["iterate"],
                    atol=1e-6,
                    rtol=0,
                )


@every_norm
def test_costs_one_forward_backward_pass_an_iteration_and_a_forward_pass_for_targets(threat):
    model = HalfSpace(torch.full(SHAPE, 1e-3), bias=-50.0, classes=3)  # never breaks
    x, y = random_images(4, *SHAPE, seed=1), torch.zeros(4, dtype=torch.long)
    targeted = {"objective": TargetedDLR(), "targets": 5}
    for settings, rows, ranking in (({"restarts": 3}, 3, 0), (targeted, 2, 1)):
        meter = PassMeter(model)
        with meter:
            x_adv = APGD(threat=threat, iterations=10, **settings)(model, x, y)
        assert (meter.forwards, meter.backwards) == (4 * (10 * rows + ranking), 4 * 10 * rows)
        assert torch.equal(x_adv, x)


@every_norm
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_few_iterations_are_no_special_case(threat, iterations):
    model, x, y = rough_network()
    attack = APGD(threat=threat, iterations=iterations)
    x_adv = attack(model, x, y)
    assert x_adv.isfinite().all()
    assert (threat.distance(x_adv, x) <= threat.radius * (1 + 1e-6)).all()


def test_a_loss_that_is_not_a_number_is_never_the_best():
    model, x, y = rough_network()
    attack = APGD(threat=L2(0.8))
    state = attack.begin({"x": x, "y": y, "target": y}, torch.Generator().manual_seed(0))
    nan = torch.full((7, 4), torch.nan, dtype=torch.float64)
    state = attack.advance(state, nan, torch.zeros_like(x), torch.Generator())
    second = state["iterate"]
    with torch.no_grad():
        state = attack.advance(state, model(second), torch.ones_like(x), torch.Generator())
    assert state["best_loss"].isfinite().all()
    assert torch.equal(state["best"], second)


def test_settings_are_its_identity():
    one, other = (APGD(threat=L2(0.5), objective=DLR()) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == (
        "APGD(threat=L2(radius=0.5), iterations=100, targets=0, restarts=1, eot=1, "
        "objective=DLR(), wide=False)"
    )


@dataclass(frozen=True)
class Hamming(Threat):
    norm = "l0"

    def distance(self, x_adv, x): ...
    def project(self, x_adv, x): ...
    def ascent_direction(self, gradient, x_adv): ...
    def sample(self, x, generator=None): ...


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"objective": KLDivergence()}, "objective must be a loss of the logits.*KLDivergence"),
        ({"objective": TargetedDLR()}, "go together.*targets=0; set targets=9"),
        ({"targets": 3}, r"go together.*CrossEntropy\(\) with targets=3; use TargetedDLR"),
        ({"threat": Hamming(3)}, "Unknown norm of the threat of APGD: 'l0'"),
        ({"wide": True}, r"wide needs an l1 threat.*got L2\(radius=0.5\) and 100; use wide=False"),
        (
            {"wide": True, "threat": L1(2.0), "iterations": 2},
            "at least 3 iterations, got .* and 2;",
        ),
    ],
)
def test_settings_that_make_no_sense_are_errors(as_installed, wrong, message):
    with pytest.raises(InputError, match=message):
        APGD(**{"threat": L2(0.5)} | wrong)
