"""What the shares of the attacks follow, against brute force and opponents with a known answer."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch

from multirobust.attacks.choosing import (
    EqualShares,
    ErrorShares,
    HedgeShares,
    ShapleyShares,
    UCBShares,
    shapley_values,
)
from multirobust.attacks.choosing.dealing import dealt
from multirobust.attacks.choosing.shares import Sums
from multirobust.errors import InputError

RULES = {
    "equal": lambda: EqualShares(3),
    "error": lambda: ErrorShares(3),
    "hedge": lambda: HedgeShares(3),
    "ucb": lambda: UCBShares(3),
    "shapley": lambda: ShapleyShares(3),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def sums(loss, seen, *, correct=None, p=None) -> Sums:
    """Sums over a batch, from the mean loss and the number of images of each attack."""
    seen = torch.tensor(seen, dtype=torch.float64)
    p = torch.tensor(p or [1 / len(seen)] * len(seen), dtype=torch.float64)
    right = torch.zeros_like(seen) if correct is None else torch.tensor(correct).double()
    weight = seen / (len(seen) * p)
    return Sums(torch.tensor(loss, dtype=torch.float64) * seen, right, seen, weight)


def play(shares, losses, *, steps, images=60, seed=0, errors=None):
    """Let a rule choose against opponents: losses(step) gives the mean loss of each attack."""
    random = torch.Generator().manual_seed(seed)
    for step in range(steps):
        p = shares.probabilities()
        groups = dealt(p, images, "stratified", random)
        seen = [groups.count(k) for k in range(len(p))]
        correct = [n * (1 - e) for n, e in zip(seen, errors or [0] * len(p), strict=True)]
        shares.observe(sums(losses(step), seen, correct=correct, p=p))
        if shares.probe():
            shares.observe_probe(torch.tensor(errors).double() * images, torch.tensor(images))
    return shares.probabilities()


def shapley_by_definition(broken: torch.Tensor) -> list[float]:
    """Mean over all orders of what each attack adds to those before it; via all subsets."""
    count = broken.shape[1]
    values = []
    for k in range(count):
        others, value = [j for j in range(count) if j != k], 0.0
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for subset in itertools.combinations(others, size):
                before = broken[:, list(subset)].any(1).sum().item()
                value += weight * (broken[:, [*subset, k]].any(1).sum().item() - before)
        values.append(value)
    return values


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_shapley_values_are_those_of_the_definition_over_all_subsets(count):
    random = torch.Generator().manual_seed(count)
    broken = torch.rand(30, count, generator=random) < 0.4
    values = shapley_values(broken)
    assert values.tolist() == pytest.approx(shapley_by_definition(broken))
    assert values.sum().item() == pytest.approx(broken.any(1).sum().item())


@every_rule
def test_probabilities_sum_to_one_and_keep_their_floor(rule):
    shares = RULES[rule]()
    random = torch.Generator().manual_seed(1)
    for _ in range(40):
        p = shares.probabilities()
        assert math.fsum(p) == pytest.approx(1, abs=1e-12)
        assert min(p) >= shares.floor / 3
        loss, right = torch.rand(3, generator=random) * 100, torch.rand(3, generator=random)
        seen = torch.randint(0, 9, (3,), generator=random).double()
        shares.observe(sums(loss.tolist(), seen.tolist(), correct=(right * seen).tolist(), p=p))
        shares.observe_probe(torch.rand(3, generator=random).double(), torch.tensor(1.0))


def test_errors_follow_the_formula_and_the_rule_of_e_at_is_a_setting():
    """Errors .4, .1 and .2 of 10 images each: squares .16, .01, .04; or their sizes, all images."""
    right = [6, 9, 8]
    shares = ErrorShares(3, power=2.0, floor=0.15)
    shares.observe(sums([1.0] * 3, [10] * 3, correct=right))
    expected = [0.85 * w / 0.21 + 0.05 for w in (0.16, 0.01, 0.04)]
    assert shares.probabilities() == pytest.approx(expected, rel=1e-6)
    e_at = ErrorShares(2, rate=None, power=1.0, floor=0.0)
    e_at.observe(sums([1.0] * 2, [20, 10], correct=[20, 9]))
    e_at.observe(sums([1.0] * 2, [80, 0], correct=[40, 0]))
    assert e_at.probabilities() == pytest.approx([0.8, 0.2], rel=1e-6)  # .4 and .1


def test_a_moving_error_forgets_has_no_bias_and_skips_an_attack_that_was_not_used():
    """Rate 1/2: all right and then none leaves 2/3 wrong; the other, once, half."""
    shares = ErrorShares(2, rate=0.5, power=1.0, floor=0.0)
    shares.observe(sums([1.0] * 2, [4, 4], correct=[4, 2]))
    shares.observe(sums([1.0] * 2, [4, 0], correct=[0, 0]))
    assert shares.probabilities() == pytest.approx([4 / 7, 3 / 7], rel=1e-6)


def test_errors_converge_to_the_powers_of_fixed_errors():
    errors = [0.5, 0.3, 0.4]
    total = sum(e**2 for e in errors)
    found = play(ErrorShares(3), lambda _: [1.0] * 3, steps=300, errors=errors)
    assert found == pytest.approx([0.85 * e**2 / total + 0.05 for e in errors], rel=1e-5)


def rising(step: int) -> list[float]:
    """Attack 1 loses what it had gained, attack 0 is hard for ever, attack 2 rests."""
    return [3.0, 0.5 + (step > 20), 0.2]


def test_hedge_comes_to_rest_at_the_softmax_of_the_excess():
    """Excess 1 of attack 1 alone: scores (0, 5, 0) at step / decay = 5."""
    found = play(HedgeShares(3), rising, steps=3000)
    weight = math.exp(5) / (math.exp(5) + 2)
    assert found[1] == pytest.approx(0.85 * weight + 0.05, abs=0.01)
    assert found[0] == pytest.approx(found[2], rel=0.1)


def test_the_score_of_hedge_does_not_depend_on_how_much_an_attack_is_used():
    scores = []
    for p, seen in (([0.5, 0.5], [8, 8]), ([0.25, 0.75], [4, 12])):
        shares = HedgeShares(2)
        shares.observe(sums([1.0, 1.0], seen, p=p))
        shares.observe(sums([2.0, 1.0], seen, p=p))
        scores.append(shares.scores.tolist())
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0][0] > scores[0][1]


def test_ucb_gives_all_but_the_floor_to_the_attack_of_greatest_excess():
    found = play(UCBShares(3), rising, steps=400)
    assert found == pytest.approx([0.05, 0.9, 0.05])


def test_ucb_comes_back_to_an_attack_that_it_has_not_used_for_long():
    shares = UCBShares(3, floor=0.0, width=0.5)
    random = torch.Generator().manual_seed(0)
    used = []
    for step in range(600):
        p = shares.probabilities()
        groups = dealt(p, 12, "batch", random)
        used.append(groups[0])
        shares.observe(sums(rising(step), [groups.count(k) for k in range(3)], p=p))
    assert {used[i] for i in range(500, 600)} == {0, 1, 2}
    assert used[500:].count(1) > 50


def test_shapley_probes_come_every_so_many_steps_and_decide_the_shares():
    shares = ShapleyShares(3, every=4, images=10, rate=0.5)
    assert [shares.probe() for _ in range(9)] == [10, 0, 0, 0, 10, 0, 0, 0, 10]
    assert shares.probabilities() == [1 / 3] * 3
    shares.observe_probe(torch.tensor([4.0, 0.0, 1.0]).double(), torch.tensor(10.0))
    expected = [0.85 * 0.8 + 0.05, 0.05, 0.85 * 0.2 + 0.05]
    assert shares.probabilities() == pytest.approx(expected)
    before = shares.values.clone()
    shares.observe_probe(torch.zeros(3).double(), torch.tensor(0.0))  # no probe in this step
    assert torch.equal(shares.values, before)


@every_rule
def test_a_saved_rule_goes_on_where_it_was(rule):
    first = RULES[rule]()
    errors = [0.5, 0.1, 0.3]
    play(first, rising, steps=30, errors=errors)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = RULES[rule]()
    second.load_state_dict(torch.load(file, weights_only=True))
    results = [play(shares, rising, steps=77, seed=5, errors=errors) for shares in (first, second)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ErrorShares(3, floor=1.5), r"floor must be a share in \[0, 1\], got 1.5"),
        (lambda: ErrorShares(3, rate=0.0), r"rate must be a share in \(0, 1\], got 0.0"),
        (lambda: ErrorShares(3, power=-1.0), "power must be a finite number of at least 0"),
        (lambda: EqualShares(0), "count must be at least 1, got 0"),
        (lambda: HedgeShares(3, step=0.0), "step must be positive and finite, got 0.0"),
        (lambda: HedgeShares(3, decay=2.0), r"decay must be a share in \(0, 1\], got 2.0"),
        (lambda: UCBShares(3, width=-1.0), "width must be finite and at least 0, got -1.0"),
        (lambda: UCBShares(3, decay=0.0), r"decay must be a share in \(0, 1\], got 0.0"),
        (lambda: ShapleyShares(3, every=0), "every must be at least 1, got 0"),
        (lambda: ShapleyShares(3, images=0), "images must be at least 1, got 0"),
        (lambda: ShapleyShares(3, rate=1.1), r"rate must be a share in \(0, 1\], got 1.1"),
    ],
)
def test_a_setting_out_of_range_is_an_error(make, message):
    with pytest.raises(InputError, match=message):
        make()
