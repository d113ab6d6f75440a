"""Groups of the sizes that were asked for, drawn fairly or of greatest value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import chisquare

from multirobust.attacks.choosing.dealing import assigned, dealt, sizes_of


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(20))
def test_the_assignment_is_the_best_that_has_these_sizes(seed):
    random = np.random.default_rng(seed)
    count, images = int(random.integers(1, 7)), int(random.integers(1, 40))
    values = random.normal(size=(images, count)) * 10.0 ** random.integers(-3, 4)
    if seed % 3 == 0:
        values = values.round(1)  # ties
    if seed % 2 == 0:
        values[:, 0] += 3  # everyone wants the first group
    sizes = sizes_of(random.dirichlet(np.ones(count)).tolist(), images, random.random())
    groups = assigned(values.tolist(), sizes)
    assert [groups.count(k) for k in range(count)] == sizes
    columns = np.repeat(np.arange(count), sizes)
    rows, places = linear_sum_assignment(values[:, columns], maximize=True)
    best = values[rows, columns[places]].sum()
    assert values[np.arange(images), groups].sum() == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_sizes_are_within_one_of_the_shares_and_right_on_average():
    shares, images = [0.52, 0.18, 0.3], 17
    offsets = torch.rand(4000, generator=seeded(), dtype=torch.float64).tolist()
    sizes = np.array([sizes_of(shares, images, offset) for offset in offsets])
    assert (sizes.sum(1) == images).all()
    assert (np.abs(sizes - np.array(shares) * images) < 1).all()
    assert sizes.mean(0) == pytest.approx(np.array(shares) * images, abs=0.03)


def test_each_image_has_every_group_with_its_probability():
    shares, random = [0.5, 0.2, 0.3], seeded(3)
    for mixing in ("stratified", "independent", "batch"):
        draws = [dealt(shares, 5, mixing, random) for _ in range(1500)]
        for image in (0, 4):
            counts = [sum(d[image] == k for d in draws) for k in range(3)]
            assert chisquare(counts, [750, 300, 450]).pvalue > 0.01, mixing


def test_a_batch_has_one_group_and_independent_images_do_not_keep_to_sizes():
    random = seeded(1)
    assert all(len(set(dealt([0.5, 0.5], 8, "batch", random))) == 1 for _ in range(20))
    firsts = {dealt([0.5, 0.5], 8, "independent", random).count(0) for _ in range(50)}
    assert len(firsts) > 3
    assert {dealt([0.5, 0.5], 8, "stratified", random).count(0) for _ in range(50)} == {4}
