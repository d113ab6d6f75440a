from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from multirobust.errors import InputError
from multirobust.evaluation import AttackColumn, Outcomes, PairedComparison, contributions, mcnemar


def outcomes(states: dict[str, list[int]], *, index=None, predictions=None, **manifest) -> Outcomes:
    n = len(next(iter(states.values())))
    columns = tuple(
        AttackColumn(name, name.split("_")[-1], 0.1, np.array(s), np.zeros(n), forwards=2.0)
        for name, s in states.items()
    )
    labels = np.zeros(n, dtype=int)
    predictions = labels if predictions is None else np.array(predictions)
    index = np.arange(n) if index is None else np.array(index)
    return Outcomes(index, labels, predictions, columns, dict(manifest))


FIRST = outcomes({"a_linf": [0, 0, 0, 0, 1, 1], "a_l2": [0, 0, 0, 1, 1, 0]})
SECOND = outcomes({"a_linf": [1, 0, 1, 0, 0, 1], "a_l2": [0, 0, 0, 0, 1, 1]})


def test_only_the_images_on_which_two_models_differ_count():
    found = mcnemar(FIRST, SECOND)
    # First survives 0, 1, 2; second survives 1, 3.
    assert (found.only_first, found.only_second, found.n, found.unknown) == (2, 1, 6, 0)
    assert found.difference == pytest.approx(1 / 6)
    assert mcnemar(FIRST, SECOND, ["l2"]).difference == pytest.approx(0)
    assert mcnemar(SECOND, FIRST).difference == -found.difference


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 0), (1, 6), (10, 10), (40, 21), (0, 500)])
def test_the_p_value_is_that_of_the_exact_binomial_test(a, b):
    expected = binomtest(a, a + b).pvalue if a + b else 1.0
    assert PairedComparison(a, b, 1000).p_value == pytest.approx(expected, rel=1e-9)


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    rng, n, covered = np.random.default_rng(0), 200, 0
    cells = [0.5, 0.2, 0.12, 0.18]  # both, only first, only second, none
    for _ in range(2000):
        _, first, second, _ = rng.multinomial(n, cells)
        low, high = PairedComparison(int(first), int(second), n).interval()
        covered += low <= 0.2 - 0.12 <= high
    assert 0.93 < covered / 2000 < 0.98


def test_images_that_an_error_leaves_open_are_left_out():
    failed = outcomes({"a_linf": [2, 0, 1, 0, 0, 1], "a_l2": [0, 0, 0, 2, 1, 1]})
    found = mcnemar(FIRST, failed)
    # Image 4 is broken in both, whatever else; 0 and 3 are open.
    assert (found.n, found.unknown) == (4, 2)
    assert "2 left out" in str(found)
    every = outcomes({"a_linf": [2] * 6, "a_l2": [2] * 6})
    with pytest.raises(InputError, match="no image has a known outcome in both"):
        mcnemar(FIRST, every)


def test_the_order_of_the_images_does_not_matter():
    order = [3, 1, 5, 0, 4, 2]
    shuffled = outcomes({c.name: list(c.states[order]) for c in SECOND.columns}, index=order)
    assert mcnemar(FIRST, shuffled) == mcnemar(FIRST, SECOND)


def test_evaluations_that_cannot_be_compared_are_told():
    with pytest.raises(InputError, match="same images, got 6 and 3"):
        mcnemar(FIRST, outcomes({"a_linf": [0, 0, 1], "a_l2": [0, 0, 0]}))
    states = {c.name: list(c.states) for c in FIRST.columns}
    one, other = (outcomes(states, split_digest=digest) for digest in "ab")
    with pytest.raises(InputError, match="must be of the same images"):
        mcnemar(one, other)
    with pytest.raises(InputError, match="Unknown threat: 'l1'"):
        mcnemar(FIRST, SECOND, ["l1"])
    with pytest.raises(InputError, match=r"confidence must lie in \(0, 1\)"):
        mcnemar(FIRST, SECOND).interval(confidence=1.0)


def test_a_comparison_is_one_line():
    assert str(PairedComparison(14, 4, 500)) == (
        "+2.0 [0.3, 3.7] points, p = 0.031, on 500 images (14 to 4)"
    )


def test_what_each_attack_adds_is_counted_once():
    found = contributions(
        outcomes(
            {"a_linf": [1, 1, 0, 0, 1], "b_linf": [3, 1, 1, 0, 1], "c_l2": [0, 0, 1, 2, 1]},
            predictions=[0, 0, 0, 0, 7],
        )
    )
    assert [c.first for c in found] == [2, 1, 0]
    assert [c.only for c in found] == [1, 0, 0]
    assert [c.seen for c in found] == [4, 3, 4]
    assert [c.errors for c in found] == [0, 0, 1]
    assert [c.passes for c in found] == [2.0] * 3
    assert (found[0].alone.value, found[1].alone.exact) == (0.4, False)
