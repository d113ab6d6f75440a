"""A batch whose images have threats of their own: what each threat does alone, in its place."""

from __future__ import annotations

import pytest
import torch

from linear_oracles import random_images, random_tensor
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Allotment, Linf, MixedThreat

BALLS = (Linf(0.1), L2(0.5), L1(2.0))
GROUPS = (2, 0, 1, 1, 2, 0, 2)
SHAPE = (len(GROUPS), 2, 3, 3)


def mixed(groups=GROUPS) -> MixedThreat:
    return MixedThreat(BALLS, Allotment.of(groups, len(BALLS)))


def test_an_allotment_sorts_by_group_and_finds_the_way_back():
    allotment = Allotment.of(GROUPS, 4)
    assert allotment.sizes == (2, 2, 3, 0)
    assert allotment.order.tolist() == [1, 5, 2, 3, 0, 4, 6]
    assert torch.equal(allotment.index, torch.tensor(GROUPS))
    images = random_images(*SHAPE)
    assert torch.equal(allotment.merged(allotment.parted(images)), images)
    parts = [allotment.rows(0, 3), allotment.rows(3, 7)]
    assert Allotment.joined(parts) == allotment
    assert hash(Allotment.joined(parts)) == hash(allotment)
    assert torch.equal(Allotment.joined(parts).order, allotment.order)


@pytest.mark.parametrize("groups", [GROUPS, (1,) * 7, (0, 0, 0, 2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("what", ["project", "ascent_direction", "distance"])
def test_each_image_gets_what_its_own_threat_does(groups, what):
    a, x = random_tensor(*SHAPE, seed=1), random_images(*SHAPE, seed=2)
    found = getattr(mixed(groups), what)(a, x)
    for k, ball in enumerate(BALLS):
        rows = [i for i, group in enumerate(groups) if group == k]
        if rows:
            assert torch.equal(found[rows], getattr(ball, what)(a[rows], x[rows]))


def test_samples_lie_in_the_own_ball_and_hardly_ever_in_a_smaller_one():
    x = torch.full(SHAPE, 0.5)
    noise = mixed().sample(x, torch.Generator().manual_seed(3))
    share = mixed().distance(noise, x) / mixed().radius
    assert (share <= 1 + 1e-6).all()
    assert (share > 0.5).all()
    assert torch.equal(mixed().sample(x), mixed().sample(x))


def test_the_projection_has_exact_first_and_second_derivatives():
    shape, threat = (3, 1, 1, 3), mixed((2, 0, 1))
    x = 0.2 + 0.6 * random_images(*shape, seed=4, dtype=torch.float64)
    a = (x + random_tensor(*shape, seed=5, dtype=torch.float64)).requires_grad_()
    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(lambda a: threat.project(a, x), (a,))
        assert torch.autograd.gradgradcheck(lambda a: threat.project(a, x), (a,))


def test_rows_of_a_mixed_threat_are_the_threats_of_those_images():
    assert mixed().rows(2, 5) == mixed(GROUPS[2:5])
    assert mixed().radius.tolist() == [BALLS[k].radius for k in GROUPS]


def test_wrong_groups_and_too_few_threats_are_errors():
    with pytest.raises(InputError, match="groups must be numbers from 0 to 1"):
        Allotment.of([0, 2], 2)
    with pytest.raises(InputError, match="one threat for each of the 3 groups, got 2"):
        MixedThreat(BALLS[:2], Allotment.of([0, 2], 3))
