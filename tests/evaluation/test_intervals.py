from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from multirobust.errors import InputError
from multirobust.evaluation import (
    Difference,
    Estimate,
    difference_by_seed,
    mean_and_std,
    student_half,
    wilson,
)


@st.composite
def counts(draw):
    n = draw(st.integers(1, 20_000))
    return draw(st.integers(0, n)), n


@given(counts())
def test_wilson_agrees_with_scipy(count):
    k, n = count
    expected = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(counts(), st.floats(0.5, 0.999))
def test_wilson_ends_solve_the_score_equation(count, confidence):
    """Closed form: the ends are the p with (share - p)^2 = z^2 p (1 - p) / n."""
    k, n = count
    z = binomial_z(confidence)
    roots = np.roots([1 + z * z / n, -(2 * k / n + z * z / n), (k / n) ** 2])
    expected = sorted(np.clip(roots.real, 0, 1))
    assert wilson(k / n, n, confidence=confidence) == pytest.approx(tuple(expected), abs=1e-7)


def binomial_z(confidence: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + confidence) / 2))


@given(st.floats(0, 1), st.integers(1, 10**7))
def test_wilson_stays_within_the_unit_interval_around_the_share(share, n):
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1


def test_wilson_has_exact_ends_and_a_width_at_no_and_at_all_successes():
    assert wilson(0.0, 20)[0] == 0.0
    assert wilson(1.0, 20)[1] == 1.0
    assert wilson(0.0, 20)[1] == pytest.approx(1 - wilson(1.0, 20)[0])
    assert wilson(1.0, 20)[0] < 0.9


@pytest.mark.parametrize(("share", "n"), [(-0.1, 5), (1.1, 5), (math.nan, 5), (0.5, 0)])
def test_wilson_names_the_rule_that_its_arguments_break(share, n):
    with pytest.raises(InputError, match=r"share in \[0, 1\], n >= 1"):
        wilson(share, n)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_mean_and_std_agree_with_numpy(values):
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    assert std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_one_seed_has_no_standard_deviation():
    assert mean_and_std([0.25]) == (0.25, None)


def test_no_seed_is_an_error():
    with pytest.raises(InputError, match="at least one value"):
        mean_and_std([])


def test_an_estimate_shows_percent_with_its_interval():
    low, high = wilson(0.434, 5000)
    assert str(Estimate(0.434, 0.434, 5000)) == f"43.4 [{100 * low:.1f}, {100 * high:.1f}]"


def test_an_estimate_with_errors_shows_a_range_and_covers_both_ends():
    estimate = Estimate(0.43, 0.44, 1000)
    assert str(estimate) == "43.0–44.0"
    assert not estimate.exact
    assert estimate.value == 0.43
    assert (estimate.low, estimate.high) == (wilson(0.43, 1000)[0], wilson(0.44, 1000)[1])


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.data())
def test_differences_are_of_equal_seeds_with_the_interval_of_a_paired_t_test(gaps, data):
    base = {seed: data.draw(st.floats(-100, 100)) for seed in range(len(gaps))}
    ours = {seed: base[seed] + gap for seed, gap in enumerate(gaps)}
    found = difference_by_seed({**ours, 98: 7.0}, {**base, 99: 3.0})
    assert found is not None
    assert found.seeds == tuple(range(len(gaps)))
    first, second = ([values[seed] for seed in found.seeds] for values in (ours, base))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gaps that are all but equal
        interval = ttest_rel(first, second).confidence_interval(0.95)
    assert found.half is not None
    assert found.mean == pytest.approx(np.mean(gaps), abs=1e-9)
    assert found.mean - found.half == pytest.approx(interval.low, abs=1e-6)
    assert found.mean + found.half == pytest.approx(interval.high, abs=1e-6)


def test_one_seed_has_a_difference_and_no_interval_and_no_common_seed_has_neither():
    one = difference_by_seed({0: 3.0, 1: 9.0}, {0: 1.0})
    assert one == Difference(2.0, None, (0,))
    assert not one.clear
    assert difference_by_seed({0: 3.0}, {1: 1.0}) is None
    assert student_half([5.0]) is None


def test_a_difference_is_clear_where_its_interval_leaves_zero_out():
    assert Difference(-2.0, 1.9, (0, 1)).clear
    assert not Difference(2.0, 2.1, (0, 1)).clear
