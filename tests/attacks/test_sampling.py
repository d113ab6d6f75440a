from __future__ import annotations

import io

import pytest
import torch
from scipy.stats import chisquare

from multirobust.attacks import PGD, Always, ErrorSampler, Sampler, UniformSampler
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


def tell(sampler: Sampler, index: int, right: int, wrong: int) -> None:
    """Let a sampler observe so many right and wrong predictions of one attack."""
    logits = torch.tensor([[1.0, 0.0]] * right + [[0.0, 1.0]] * wrong)
    sampler.observe(index, logits, torch.zeros(right + wrong, dtype=torch.long))


def test_errors_decide_the_probabilities_over_all_images_of_the_run():
    """Errors 40 of 100, in two batches, and 1 of 10: p = 0.4 / 0.5 and 0.1 / 0.5."""
    sampler = ErrorSampler(ATTACKS[:2])
    tell(sampler, 0, right=20, wrong=0)
    tell(sampler, 1, right=9, wrong=1)
    tell(sampler, 0, right=40, wrong=40)
    assert sampler.probabilities() == pytest.approx([0.8, 0.2], rel=1e-6)


def test_power_and_floor_follow_the_formula():
    """Errors 0.4 and 0.1, squared 16 to 1; 0.15 of the draws are uniform."""
    sampler = ErrorSampler(ATTACKS[:2], power=2.0, floor=0.15)
    tell(sampler, 0, right=6, wrong=4)
    tell(sampler, 1, right=9, wrong=1)
    expected = [0.85 * 16 / 17 + 0.075, 0.85 / 17 + 0.075]
    assert sampler.probabilities() == pytest.approx(expected, rel=1e-6)


def test_a_moving_average_forgets_and_has_no_bias():
    """Rate 1/2. Attack 0, all right and then none: (1/2 * 1/2) / (3/4) right, error 2/3. Attack 1,
    once, half right: error 1/2."""
    sampler = ErrorSampler(ATTACKS[:2], rate=0.5)
    tell(sampler, 0, right=10, wrong=0)
    tell(sampler, 1, right=2, wrong=2)
    tell(sampler, 0, right=0, wrong=10)
    assert sampler.probabilities() == pytest.approx([4 / 7, 3 / 7], rel=1e-6)


def test_draws_are_uniform_until_every_attack_was_observed_and_where_none_finds_an_error():
    sampler = ErrorSampler(ATTACKS)
    tell(sampler, 0, right=1, wrong=9)
    tell(sampler, 2, right=9, wrong=1)
    assert sampler.probabilities() == [1 / 3] * 3
    flawless = ErrorSampler(ATTACKS)
    for index in range(3):
        tell(flawless, index, right=5, wrong=0)
    assert flawless.probabilities() == [1 / 3] * 3


def test_draws_by_errors_have_their_frequencies():
    sampler = ErrorSampler(ATTACKS, seed=6)
    for index, wrong in enumerate((60, 30, 10)):
        tell(sampler, index, right=100 - wrong, wrong=wrong)
    indices(sampler, 3000)
    assert chisquare(sampler.draws, [1800, 900, 300]).pvalue > 0.01


def test_an_attack_without_errors_is_not_drawn_unless_there_is_a_floor():
    for floor, drawn in ((0.0, False), (0.3, True)):
        sampler = ErrorSampler(ATTACKS[:2], seed=6, floor=floor)
        tell(sampler, 0, right=5, wrong=5)
        tell(sampler, 1, right=10, wrong=0)
        assert (1 in indices(sampler, 200)) == drawn


@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_saved_sampler_keeps_what_it_observed(rate):
    sampler = ErrorSampler(ATTACKS[:2], seed=4, rate=rate)
    tell(sampler, 0, right=3, wrong=7)
    tell(sampler, 1, right=8, wrong=1)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    expected = indices(sampler, 40)
    file.seek(0)
    fresh = ErrorSampler(ATTACKS[:2], seed=99, rate=rate)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.probabilities() == sampler.probabilities()
    assert indices(fresh, 40) == expected


def test_a_sampler_remembers_what_it_drew_last():
    sampler = UniformSampler(ATTACKS, seed=1)
    assert sampler.last is None
    assert sampler.attacks.index(sampler.draw()) == sampler.last


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, r"rate must be a share in \(0, 1\], got 0.0"),
        ({"rate": 1.5}, r"rate must be a share in \(0, 1\], got 1.5"),
        ({"power": -1.0}, "power must be a finite number of at least 0, got -1.0"),
        ({"power": float("inf")}, "power must be a finite number of at least 0, got inf"),
        ({"floor": 1.1}, r"floor must be a share in \[0, 1\], got 1.1"),
    ],
)
def test_a_setting_of_the_error_sampler_out_of_range_is_an_error(settings, message):
    with pytest.raises(InputError, match=message):
        ErrorSampler(ATTACKS, **settings)
