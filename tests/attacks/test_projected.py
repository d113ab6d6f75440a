"""Rotation and translation brought into an l2 ball."""

from __future__ import annotations

import pytest
import torch

from linear_oracles import network, random_images
from multirobust.attacks import PGD, PassMeter, Projected, SpatialRandom
from multirobust.threats import L2, Linf

X, Y = random_images(8, 3, 8, 8, seed=7), torch.arange(8) % 4
SPATIAL = SpatialRandom(radius=30.0)
BALL = L2(0.5)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_a_rotation_that_leaves_the_ball_ends_on_its_sphere_along_the_same_line():
    model = network().eval()
    rotated = SPATIAL(model, X, Y, generator=seeded())
    move = rotated.double() - X.double()
    length = move.flatten(1).norm(dim=1)
    assert (length > 2 * BALL.radius).all()
    x_adv = Projected(SPATIAL, BALL)(model, X, Y, generator=seeded())
    expected = X + move * (BALL.radius / length)[:, None, None, None]
    torch.testing.assert_close(x_adv.double(), expected, rtol=0, atol=1e-6)
    assert (BALL.distance(x_adv, X) <= BALL.radius * (1 + 1e-6)).all()


def test_images_within_the_ball_stay_as_they_are():
    model, inner = network().eval(), PGD(threat=Linf(0.01), steps=2, step_size=0.01)
    x_adv = Projected(inner, L2(5.0))(model, X, Y)
    torch.testing.assert_close(x_adv, inner(model, X, Y), rtol=0, atol=1e-6)


def test_its_threat_is_the_ball():
    assert Projected(SPATIAL, BALL).threats == (BALL,)


@pytest.mark.parametrize("draws", [1, 4])
def test_costs_at_most_the_draws_in_forward_passes_and_no_backward_pass(draws):
    model = network()
    attack = Projected(SpatialRandom(radius=30.0, draws=draws), BALL)
    with PassMeter(model) as meter:
        attack(model, X, Y)
    assert len(X) <= meter.forwards <= draws * len(X)
    assert meter.backwards == 0
