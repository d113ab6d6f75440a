from __future__ import annotations

import io

import pytest
import torch
from scipy.stats import chisquare

from multirobust.attacks import PGD, Always, Sampler, UniformSampler
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf

ATTACKS = tuple(PGD(threat=t, steps=1, step_size=0.1) for t in (Linf(0.1), L2(0.5), L1(2.0)))


class Weighted(Sampler):
    """Draws with given probabilities."""

    def __init__(self, weights, **options):
        super().__init__(ATTACKS[: len(weights)], **options)
        self.weights = weights

    def probabilities(self):
        return self.weights


def indices(sampler: Sampler, count: int) -> list[int]:
    return [sampler.attacks.index(sampler.draw()) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_uniform_draws_have_uniform_frequencies(count):
    sampler = UniformSampler(ATTACKS[:count], seed=11)
    drawn = indices(sampler, 3000)
    assert sampler.draws == [drawn.count(k) for k in range(count)]
    assert chisquare(sampler.draws).pvalue > 0.01 or count == 1
    assert sum(sampler.probabilities()) == pytest.approx(1)


def test_draws_follow_any_probabilities():
    weights = [0.6, 0.0, 0.4]
    sampler = Weighted(weights, seed=1)
    indices(sampler, 3000)
    assert sampler.draws[1] == 0
    assert chisquare(sampler.draws[::2], [1800, 1200]).pvalue > 0.01


def test_consecutive_draws_are_independent():
    drawn = indices(UniformSampler(ATTACKS, seed=2), 3000)
    pairs = [drawn[i] * 3 + drawn[i + 1] for i in range(0, 3000, 2)]
    assert chisquare([pairs.count(k) for k in range(9)]).pvalue > 0.01


def test_rounding_of_the_probabilities_never_draws_beyond_the_last():
    sampler = Weighted([0.1, 0.1, 0.7], seed=0)  # a sum below one
    assert set(indices(sampler, 500)) == {0, 1, 2}


def test_a_saved_sampler_goes_on_with_the_same_draws():
    sampler = UniformSampler(ATTACKS, seed=4)
    indices(sampler, 17)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    expected = indices(sampler, 40)
    file.seek(0)
    fresh = UniformSampler(ATTACKS, seed=99)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert sum(fresh.draws) == 17
    assert indices(fresh, 40) == expected
    assert fresh.draws == sampler.draws


def test_the_seed_decides_the_draws():
    first, same, other = (indices(UniformSampler(ATTACKS, seed=s), 30) for s in (1, 1, 2))
    assert first == same
    assert first != other


def test_always_draws_its_one_attack():
    sampler = Always(ATTACKS[1])
    assert indices(sampler, 3) == [0, 0, 0]
    assert sampler.draw() is ATTACKS[1]
    assert sampler.probabilities() == [1.0]


def test_a_sampler_needs_an_attack():
    with pytest.raises(InputError, match="attacks must name at least one attack, got none"):
        UniformSampler(())
