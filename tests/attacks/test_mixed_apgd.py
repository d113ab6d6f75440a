"""Auto-PGD with an attack for each image: the same as Auto-PGD on the images of each attack."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from linear_oracles import HalfSpace, network, random_images, random_tensor
from multirobust.attacks import (
    DLR,
    CrossEntropy,
    LockstepAPGD,
    Margin,
    MixedAPGD,
    PassMeter,
    Projected,
    SpatialRandom,
    TargetedDLR,
    attacking,
)
from multirobust.attacks.lockstep_groups import Group, ask, run
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Allotment, Linf

SHAPE = (2, 4, 4)
BALLS = (Linf(0.2), L2(0.8), L1(2.5))
GROUPS = [0, 2, 1, 1, 2, 0, 2, 0, 1, 2]


def attacks(steps=7, **settings):
    return tuple(LockstepAPGD(threat=ball, steps=steps, **settings) for ball in BALLS)


def batch(*, classes=2):
    return random_images(len(GROUPS), *SHAPE, seed=5), torch.arange(len(GROUPS)) % classes


def smooth_network() -> nn.Module:
    """A network whose logits of an image are the same bits in any batch."""

    class Rowwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(2, seed=1).eval()

        def forward(self, x):
            return torch.cat([self.inner(row[None]) for row in x])

    return Rowwise()


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("k", range(3), ids=["linf", "l2", "l1"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_with_one_attack_for_all_it_is_that_attack_bit_for_bit(steps, k, training):
    model, (x, y) = network(2).train(training), batch(classes=4)
    alone = attacks(steps)
    expected = alone[k](model, x, y)
    assert torch.equal(MixedAPGD(alone)(model, x, y, Allotment.of([k] * len(x), 3)), expected)
    assert not torch.equal(expected, x)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_each_group_gets_what_its_attack_gives_it_alone_bit_for_bit(steps):
    model, (x, y) = smooth_network(), batch(classes=4)
    mixed = (*attacks(steps), *attacks(steps, objective=DLR()))
    groups = [0, 2, 1, 4, 5, 3, 2, 0, 4, 1]
    found = MixedAPGD(mixed)(model, x, y, Allotment.of(groups, len(mixed)))
    for k, attack in enumerate(mixed):
        rows = [i for i, group in enumerate(groups) if group == k]
        assert torch.equal(found[rows], attack(model, x[rows], y[rows])), attack


def test_every_image_attains_the_optimum_of_its_own_ball_on_a_linear_model():
    model = HalfSpace(random_tensor(*SHAPE, seed=3), bias=0.1)
    x, y = batch()
    gain = model.gain(MixedAPGD(attacks(40))(model, x, y, Allotment.of(GROUPS, 3)), x, y)
    for k, ball in enumerate(BALLS):
        rows = [i for i, group in enumerate(GROUPS) if group == k]
        optimum = model.greatest_gain(ball, x[rows], y[rows])
        assert (gain[rows] <= optimum * (1 + 2e-6)).all()
        assert (gain[rows] >= 0.96 * optimum).all()


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_all_groups_together_cost_t_forward_backward_passes_and_a_forward_pass(steps):
    model, (x, y) = network(2), batch(classes=4)
    with PassMeter(model) as meter, attacking(model):
        MixedAPGD(attacks(steps))(model, x, y, Allotment.of(GROUPS, 3))
    assert (meter.forwards, meter.backwards) == (len(x) * (steps + 1), len(x) * steps)


def test_an_objective_that_asks_about_the_clean_images_costs_a_pass_of_its_group():
    model, (x, y) = network(2), batch(classes=4)
    mixed = (*attacks()[:2], LockstepAPGD(threat=BALLS[2], steps=7, objective=TargetedDLR()))
    with PassMeter(model) as meter, attacking(model):
        MixedAPGD(mixed)(model, x, y, Allotment.of(GROUPS, 3))
    assert meter.forwards == len(x) * 8 + GROUPS.count(2)


def test_nothing_waits_for_the_device():
    """Tensors on the meta device have no values: whoever asks for one fails."""
    x = torch.empty(len(GROUPS), *SHAPE, device="meta")
    y = torch.empty(len(GROUPS), dtype=torch.long, device="meta")
    model = network(2).to("meta")
    allotment = Allotment.of(GROUPS, 3, "meta")
    found = MixedAPGD(attacks(3))(model, x, y, allotment, start=x)
    assert found.shape == x.shape


def test_another_kind_of_attack_takes_its_images_alone():
    model, (x, y) = smooth_network(), batch(classes=4)
    rotation = Projected(SpatialRandom(radius=30.0, draws=4), L2(0.8))
    mixed = (*attacks()[:2], rotation)
    seeded = torch.Generator().manual_seed(3)
    found = MixedAPGD(mixed)(model, x, y, Allotment.of(GROUPS, 3), generator=seeded)
    for k in range(3):
        rows = [i for i, group in enumerate(GROUPS) if group == k]
        generator = torch.Generator().manual_seed(3)
        assert torch.equal(found[rows], mixed[k](model, x[rows], y[rows], generator=generator))


def test_only_attacks_of_another_kind_share_nothing_and_still_run():
    model, (x, y) = network(2).eval(), batch(classes=4)
    rotation = SpatialRandom(radius=30.0, draws=2)
    mixed = MixedAPGD((rotation,))
    assert mixed.steps == 0
    found = mixed(model, x, y, Allotment.of([0] * len(x), 1))
    assert torch.equal(found, rotation(model, x, y))


class Recorded(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.asked = network(2).eval(), []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.inner(x)


def test_every_image_starts_where_it_is_told_within_its_own_ball():
    model, (x, y) = Recorded(), batch(classes=4)
    allotment = Allotment.of(GROUPS, 3)
    start = x + random_tensor(*x.shape, seed=8)
    MixedAPGD(attacks(3))(model, x, y, allotment, start=start)
    first = model.asked[0][allotment.back]
    for k, ball in enumerate(BALLS):
        rows = [i for i, group in enumerate(GROUPS) if group == k]
        with torch.no_grad():
            assert torch.equal(first[rows], ball.project(start[rows], x[rows]))


def test_a_start_at_the_clean_images_changes_no_bit():
    model, (x, y) = network(2).eval(), batch(classes=4)
    allotment = Allotment.of(GROUPS, 3)
    plain = MixedAPGD(attacks())(model, x, y, allotment)
    assert torch.equal(MixedAPGD(attacks())(model, x, y, allotment, start=x), plain)


def test_a_run_goes_on_from_any_step():
    model, (x, y) = network(2).eval(), batch(classes=4)
    attack = attacks(6)[0]
    with attacking(model), torch.no_grad():
        group = Group.at(attack, model, x, y)
        for step in range(2):
            (answer,) = ask(model, [group])
            group = group.moved(answer, step)
        (found,) = run(model, [group], done=2)
    assert torch.equal(found.images, attack(model, x, y))


def test_a_search_knows_margin_and_loss_of_its_images_without_another_pass():
    model, (x, y) = network(2).eval(), batch(classes=4)
    rotation = Projected(SpatialRandom(radius=30.0, draws=4), L2(0.8))
    for mixed, more in ((MixedAPGD(attacks()), 0), (MixedAPGD((*attacks()[:2], rotation)), 1)):
        allotment = Allotment.of(GROUPS, 3)
        with PassMeter(model) as meter:
            found = mixed.search(model, x, y, allotment)
        with PassMeter(model) as plain:
            images = mixed(model, x, y, allotment)
        assert meter.forwards == plain.forwards + more * GROUPS.count(2)
        assert torch.equal(found.images, images)
        with torch.no_grad():
            logits = model(images)
        torch.testing.assert_close(found.loss, CrossEntropy().of(logits, y, y))
        torch.testing.assert_close(found.margin, Margin().of(logits, y, y))


def test_the_first_answer_can_be_given_and_saves_a_pass():
    model, (x, y) = smooth_network(), batch(classes=4)
    allotment, mixed = Allotment.of(GROUPS, 3), MixedAPGD(attacks())
    with attacking(model), torch.no_grad():
        (first,) = ask(model, [Group.at(attacks()[0], model, x, y)])
    with PassMeter(model) as meter:
        found = mixed(model, x, y, allotment, first=first)
    assert (meter.forwards, meter.backwards) == (len(x) * 7, len(x) * 6)
    assert torch.equal(found, mixed(model, x, y, allotment))


@pytest.mark.parametrize(
    ("mixed", "message"),
    [
        ((), "attacks must name at least one attack, got none"),
        (
            (*attacks(3), *attacks(5)),
            "number of steps, as they share the passes, got 3, 5",
        ),
    ],
)
def test_attacks_that_cannot_share_passes_are_an_error(mixed, message):
    with pytest.raises(InputError, match=message):
        MixedAPGD(mixed)


def test_an_allotment_of_other_images_is_an_error():
    x, y = batch()
    with pytest.raises(InputError, match=r"give 10 images to 3 attacks, got one of 2 to 3"):
        MixedAPGD(attacks())(network(2), x, y, Allotment.of([0, 1], 3))


def test_each_attack_must_have_a_ball_where_balls_are_asked_for():
    assert MixedAPGD(attacks()).threats == BALLS
    with pytest.raises(InputError, match="exactly one ball"):
        _ = MixedAPGD((SpatialRandom(radius=30.0),)).threats


MASKED_CASES = {
    "one objective": attacks(6),
    "two": (*attacks(6)[:2], LockstepAPGD(threat=BALLS[2], steps=6, objective=DLR())),
}


@pytest.mark.parametrize("mixed", MASKED_CASES.values(), ids=MASKED_CASES)
@pytest.mark.parametrize("begin", [False, True], ids=["clean", "start"])
def test_attacks_that_move_all_images_give_each_what_its_own_does_bit_for_bit(mixed, begin):
    model, (x, y) = smooth_network(), batch(classes=4)
    start = random_images(len(x), *SHAPE, seed=8) if begin else None
    allotment = Allotment.of(GROUPS, 3)
    grouped, masked = (MixedAPGD(mixed, masked=value) for value in (False, True))
    with PassMeter(model) as theirs:
        expected = grouped(model, x, y, allotment, start=start)
    with PassMeter(model) as ours:
        found = masked(model, x, y, allotment, start=start)
    assert torch.equal(found, expected)
    assert not torch.equal(found, x)
    assert (ours.forwards, ours.backwards) == (theirs.forwards, theirs.backwards)
    pairs = zip(
        masked.search(model, x, y, allotment, start=start),
        grouped.search(model, x, y, allotment, start=start),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_attacks_that_move_all_images_are_one_piece_of_work_whoever_has_which():
    model, (x, y) = network(2).to("meta"), batch(classes=4)
    x, y, seen = x.to("meta"), y.to("meta"), set()

    def run(key, work, tensors, generator=None):
        seen.add((key, *(tensor.shape for tensor in tensors)))
        return work(*tensors, generator=generator)

    mixed = MixedAPGD(attacks(3), masked=True, run=run)
    for groups in (GROUPS, [0] * len(x), [1, 2] * 5):
        assert mixed(model, x, y, Allotment.of(groups, 3, "meta")).shape == x.shape
    assert len(seen) == 1
    for images in (
        3,
        5,
    ):  # survivors of a cascade: a recording of each number would fill the memory
        few = Allotment.of([0] * images, 3, "meta")
        assert len(mixed.search(model, x[:images], y[:images], few).images) == images
    assert len(seen) == 1


@pytest.mark.parametrize("other", [TargetedDLR(), None], ids=["targeted", "another kind"])
def test_only_attacks_by_logits_and_labels_can_move_all_images(other):
    rotation = SpatialRandom(radius=30.0, draws=2)
    last = LockstepAPGD(threat=BALLS[2], steps=7, objective=other) if other else rotation
    with pytest.raises(InputError, match="use masked=False"):
        MixedAPGD((*attacks()[:2], last), masked=True)


def test_an_allotment_of_other_images_is_refused_when_all_move():
    model, (x, y) = network(2), batch(classes=4)
    with pytest.raises(InputError, match="it must give 10 images to 3 attacks"):
        MixedAPGD(attacks(), masked=True)(model, x, y, Allotment.of([0], 3))
