"""Auto-PGD for training: its schedule, worst cases of linear models, and what it returns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from linear_oracles import HalfSpace, network, random_images, random_tensor
from multirobust.attacks import APGD, CrossEntropy, LockstepAPGD, PassMeter, attacking
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf

SHAPE = (2, 4, 4)
THREATS = [Linf(0.2), L2(0.8), L1(2.5)]
every_norm = pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)


@every_norm
def test_attains_the_optimum_of_a_linear_model(threat):
    model = HalfSpace(random_tensor(*SHAPE, seed=3), bias=0.1)
    x, y = random_images(6, *SHAPE, seed=5), torch.arange(6) % 2
    gain = model.gain(LockstepAPGD(threat=threat, steps=40)(model, x, y), x, y)
    optimum = model.greatest_gain(threat, x, y)
    assert (gain <= optimum * (1 + 2e-6)).all()
    assert (gain >= 0.96 * optimum).all(), (gain / optimum).min()


@pytest.mark.parametrize(
    ("threat", "steps", "reviews"),
    [
        (Linf(0.1), 1, []),
        (Linf(0.1), 2, [1]),
        (L2(0.5), 10, [2, 3, 4, 5, 6, 7, 8, 9]),
        (Linf(0.1), 50, [11, 21, 30, 38, 45]),
        (L1(2.0), 10, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (L1(2.0), 60, [2 * k for k in range(1, 30)]),
    ],
)
def test_reviews_come_at_the_published_steps(threat, steps, reviews):
    """0.22 of the steps, then 0.03 less each time down to 0.06; in l1 0.04; rounded down."""
    assert sorted(LockstepAPGD(threat=threat, steps=steps).checkpoints()) == reviews


class Recorded(nn.Module):
    """A network that remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.inner, self.asked = network().eval(), []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.inner(x)


@every_norm
def test_returns_of_all_iterates_the_one_of_greatest_loss(threat):
    model, x, y = Recorded(), random_images(8, 3, 6, 6, seed=2), torch.arange(8) % 4
    attack = LockstepAPGD(threat=threat, steps=7)
    x_adv = attack(model, x, y)
    iterates = torch.stack(model.asked)
    assert len(iterates) == 8
    assert torch.equal(iterates[0], x)
    loss = CrossEntropy().bind(model.inner, x, y)
    with torch.no_grad():
        losses = torch.stack([loss(model.inner(iterate)) for iterate in iterates])
        found = loss(model.inner(x_adv))
    assert torch.equal(found, losses.amax(0))
    assert (found > losses[0]).all()


@every_norm
def test_is_stronger_for_training_than_the_attack_that_stops_at_the_first_error(threat):
    model, x, y = network().eval(), random_images(16, 3, 6, 6, seed=4), torch.arange(16) % 4
    loss = CrossEntropy().bind(model, x, y)
    attacks = LockstepAPGD(threat=threat, steps=10), APGD(threat=threat, iterations=11)
    with torch.no_grad():
        lockstep, first_error = (loss(model(attack(model, x, y))).mean() for attack in attacks)
    assert lockstep > first_error


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_the_first_step_in_l1_moves_a_share_of_the_pixels(density):
    model = HalfSpace(random_tensor(1, 10, 10, seed=3))
    x, y = torch.full((3, 1, 10, 10), 0.5), torch.tensor([0, 1, 0])
    x_adv = LockstepAPGD(threat=L1(2.0), steps=1, density=density)(model, x, y)
    assert (x_adv != x).flatten(1).sum(1).tolist() == [100 * density] * 3


@every_norm
def test_costs_a_forward_backward_pass_a_step_and_a_forward_pass(threat):
    model, x = network(), random_images(4, 3, 6, 6)
    with PassMeter(model) as meter, attacking(model):
        LockstepAPGD(threat=threat, steps=5)(model, x, torch.arange(4))
    assert (meter.forwards, meter.backwards) == (4 * 6, 4 * 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"density": 0.0}, r"density must be a share in \(0, 1\], got 0.0"),
        ({"density": 1.5}, r"density must be a share in \(0, 1\], got 1.5"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings, message):
    with pytest.raises(InputError, match=message):
        LockstepAPGD(threat=L1(1.0), **settings)
