from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multirobust.errors import InputError
from multirobust.evaluation import AttackColumn, Outcomes, State, wilson

THREATS = ("linf", "l2", "l1")
RADII = {"linf": 8 / 255, "l2": 128 / 255, "l1": 2000 / 255}


def column(name, threat, states, **changes):
    states = np.asarray(states)
    facts = {"radius": RADII[threat], "distances": np.zeros(len(states), np.float32)} | changes
    return AttackColumn(name=name, threat=threat, states=states, **facts)


def outcomes(columns, predictions=None, n=None):
    n = n or len(columns[0].states)
    labels = np.zeros(n, np.int64)
    predictions = labels if predictions is None else np.asarray(predictions)
    return Outcomes(np.arange(n), labels, predictions, tuple(columns))


@st.composite
def evaluations(draw, errors=True):
    """Facts that obey the convention: wrong when clean means broken, an error never survives.

    They are drawn plain and built by `built` in the test, since the run-time type checks draw
    random numbers, which hypothesis forbids inside a strategy.
    """
    n = draw(st.integers(1, 12))
    classes = st.integers(-1 if errors else 0, 1)
    predictions = np.array(draw(st.lists(classes, min_size=n, max_size=n)))
    codes = st.lists(st.integers(0, 2 if errors else 1), min_size=n, max_size=n)
    attacks = []
    for i in range(draw(st.integers(1, 5))):
        states = np.array(draw(codes))
        states[predictions > 0] = State.BROKEN
        states[(predictions < 0) & (states == 0)] = State.ERROR
        attacks.append((f"attack{i}", draw(st.sampled_from(THREATS)), states))
    return attacks, predictions


def built(facts):
    attacks, predictions = facts
    return outcomes([column(*attack) for attack in attacks], predictions)


def naive(result, threats):
    """The definition, image by image: (surely survived, not known to be broken)."""
    surely = maybe = 0
    for i in range(len(result)):
        states = [c.states[i] for c in result.columns if c.threat in threats]
        surely += all(s == State.SURVIVED for s in states)
        maybe += not any(s == State.BROKEN for s in states)
    return surely / len(result), maybe / len(result)


@given(evaluations())
def test_views_agree_with_their_definition_image_by_image(facts):
    result = built(facts)
    union = result.union()
    assert (union.range_low, union.range_high) == naive(result, result.threats)
    worst = [naive(result, [threat]) for threat in result.threats]
    for threat, expected in zip(result.threats, worst, strict=True):
        view = result.worst(threat)
        assert (view.range_low, view.range_high) == expected
    average = result.average()
    assert average.range_low == pytest.approx(np.mean([low for low, _ in worst]))
    assert average.range_high == pytest.approx(np.mean([high for _, high in worst]))


@given(evaluations())
def test_union_is_at_most_every_worst_case_and_their_minimum_at_most_the_average(facts):
    result = built(facts)
    for end in ("range_low", "range_high"):
        worst = [getattr(result.worst(threat), end) for threat in result.threats]
        union, average = getattr(result.union(), end), getattr(result.average(), end)
        assert union <= min(worst) <= average <= max(worst)
        assert average <= getattr(result.clean(), end)


@given(
    evaluations(), st.sampled_from(THREATS), st.lists(st.integers(0, 2), min_size=12, max_size=12)
)
@settings(max_examples=50)
def test_another_attack_never_raises_a_worst_case_or_the_union(facts, threat, codes):
    attacks, predictions = facts
    states = np.array(codes[: len(predictions)])
    states[predictions > 0] = State.BROKEN
    states[(predictions < 0) & (states == 0)] = State.ERROR
    result, more = built(facts), built(([*attacks, ("extra", threat, states)], predictions))
    pairs = [(result.union(), more.union())]
    pairs += [(result.worst(name), more.worst(name)) for name in result.threats]
    for before, after in pairs:
        assert after.range_low <= before.range_low
        assert after.range_high <= before.range_high


@given(evaluations(errors=False))
def test_without_errors_every_range_is_one_number(facts):
    result = built(facts)
    assert all(view.exact for view in (result.clean(), result.union(), result.average()))


def test_a_broken_image_stays_broken_whatever_errors_other_attacks_ended_in():
    result = outcomes([column("a", "linf", [1, 2, 0, 0]), column("b", "linf", [2, 0, 0, 1])])
    worst = result.worst("linf")
    assert (worst.range_low, worst.range_high) == (0.25, 0.5)


def test_a_clean_error_is_unknown():
    result = outcomes([column("a", "linf", [2, 0, 1, 1])], predictions=[-1, 0, 1, 0])
    clean = result.clean()
    assert (clean.range_low, clean.range_high) == (0.5, 0.75)


def test_views_of_chosen_attacks_and_threats_ignore_the_others():
    result = outcomes(
        [
            column("pgd_linf", "linf", [0, 0, 1, 1]),
            column("apgd_linf", "linf", [0, 1, 0, 1]),
            column("pgd_l1", "l1", [0, 1, 1, 1]),
        ]
    )
    assert result.threats == ("linf", "l1")
    assert result.attack("pgd_linf").value == 0.5
    assert result.worst("linf").value == 0.25
    assert result.union(["linf"]).value == 0.25
    assert result.average(["linf", "linf", "l1"]).value == 0.25
    assert result.union().value == 0.25


def test_a_views_interval_is_wilsons():
    view = outcomes([column("a", "linf", [0] * 43 + [1] * 57)]).worst("linf")
    assert (view.low, view.high) == wilson(0.43, 100)
    assert view.n == 100


@given(evaluations(errors=False))
def test_the_interval_of_the_average_is_at_least_as_wide_as_the_spread_between_images_asks(facts):
    """Variance of a number in [0, 1] is at most mean * (1 - mean): the interval is conservative."""
    result = built(facts)
    fractions = np.mean(
        [
            np.all([c.states == 0 for c in result.columns if c.threat == threat], axis=0)
            for threat in result.threats
        ],
        axis=0,
    )
    average = result.average()
    assert (average.low, average.high) == wilson(average.value, len(result))
    assert fractions.var() <= average.value * (1 - average.value) + 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.attack("pgd_linv"), r"Unknown attack: 'pgd_linv'. Did you mean 'pgd_linf'\?"),
        (lambda r: r.worst("linv"), r"Unknown threat: 'linv'. Did you mean 'linf'\?"),
        (lambda r: r.union([]), "at least one"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(call, message):
    with pytest.raises(InputError, match=message):
        call(outcomes([column("pgd_linf", "linf", [0, 1])]))


def test_views_over_attacks_need_an_attack_but_the_clean_accuracy_does_not():
    result = outcomes([], n=2)
    assert result.clean().value == 1.0
    assert "clean" in str(result)
    with pytest.raises(InputError, match="evaluate an attack first"):
        result.union()


ZERO = np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: column("a", "linf", [0, 4]), "survived.*got 4"),
        (lambda: outcomes([column("a", "linf", [0, 3])]), "skipped by an attack though none broke"),
        (lambda: column("a", "linf", [0, 257]), "whole numbers in range"),
        (lambda: column("a", "linf", [0, -1]), "whole numbers in range"),
        (lambda: column("a", "linf", [0.5, 0]), "whole numbers"),
        (lambda: column("a", "linf", [[0, 1]]), "shape"),
        (lambda: column("", "linf", [0, 1]), "must not be empty"),
        (lambda: column("a", "linf", [0, 1], distances=np.zeros(3)), "one entry per image"),
        (lambda: column("a", "linf", [0, 1], distances=np.array([0, np.nan])), "finite"),
        (lambda: column("a", "linf", [0, 1], seconds=float("nan")), "finite"),
        (lambda: column("a", "linf", [0, 1], radius=-1.0), "not negative"),
        (lambda: Outcomes(ZERO[:0], ZERO[:0], ZERO[:0]), "at least one image"),
        (lambda: Outcomes(ZERO, ZERO, ZERO), "name an image twice"),
        (lambda: Outcomes(np.arange(2), ZERO[:1], ZERO), "labels must have one entry"),
        (lambda: Outcomes(np.arange(2), ZERO - 1, ZERO), "labels must be at least 0"),
        (lambda: Outcomes(np.arange(2), ZERO, ZERO - 2), "predictions at least -1"),
        (lambda: outcomes([column("a", "linf", [0, 1])], n=3), "2 of 3 images"),
        (lambda: outcomes([column("a", "linf", [0]), column("a", "l1", [0])]), "must differ"),
        (
            lambda: outcomes([column("a", "l2", [0]), column("b", "l2", [0], radius=1.0)]),
            "one radius",
        ),
        (lambda: outcomes([column("a", "linf", [0, 2])], [0, 1]), "wrong clean prediction"),
        (lambda: outcomes([column("a", "linf", [0, 0])], [0, -1]), "clean prediction is an error"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_one_clear_error(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_stored_facts_cannot_be_changed_and_are_copies():
    states = np.array([0, 1], np.uint8)
    result = outcomes([column("a", "linf", states)])
    states[:] = 1
    assert result.worst("linf").value == 0.5
    with pytest.raises(ValueError, match="read-only"):
        result.columns[0].states[0] = 1


def test_equality_is_that_of_the_facts():
    def make(state):
        return outcomes([column("a", "linf", [0, state])])

    assert make(0) == make(0)
    assert make(0) != make(1)
    assert make(0).columns[0] != "a"


def test_the_text_lists_every_accuracy():
    text = str(outcomes([column("a", "linf", [0, 1]), column("b", "l1", [0, 2])]))
    assert [line.split()[0] for line in text.splitlines()] == [
        "2", "clean", "linf", "l1", "union", "avg",
    ]  # fmt: skip
    assert "50.0–100.0" in text
