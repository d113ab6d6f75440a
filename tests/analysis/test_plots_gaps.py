"""The figure of a study at equal cost."""

from __future__ import annotations

import math

import pytest

from drawings import check_drawing, description, texts
from multirobust.analysis import CostPoint, Gap, gaps_and_costs
from multirobust.errors import InputError

GAPS = [Gap("race", "samplers", 2.5, 1.25), Gap("msd & co", "fixed", -3.0)]
POINTS = [
    CostPoint("equal epochs", "T = 3", 90.0, 0.3, 0.25, 0.35),
    CostPoint("equal epochs", "T = 5", 130.0, 0.31, 0.31, 0.33),
    CostPoint("equal passes", "T = 3", 287.0, 0.4, 0.4, 0.4),
]


def test_every_difference_and_every_point_is_drawn_and_said():
    svg = check_drawing(lambda: gaps_and_costs(GAPS, POINTS, reference="sat"))
    assert {"race", "msd & co", "equal epochs", "equal passes", "T = 5"} <= set(texts(svg))
    assert texts(svg).count("T = 3") == 2
    assert "Union less that of sat (points)" in texts(svg)
    said = description(svg)
    assert "race: +2.5 ± 1.2 points. msd & co: -3.0 points." in said
    assert "equal epochs, T = 3: 30.0 % [25.0, 35.0] for 90 passes." in said


@pytest.mark.parametrize(("gaps", "points"), [(GAPS, []), ([], POINTS)])
def test_a_part_with_nothing_to_show_is_left_out(gaps, points):
    svg = check_drawing(lambda: gaps_and_costs(gaps, points, reference="sat"))
    assert ("race" in texts(svg)) == bool(gaps)
    assert ("Acc union (%)" in texts(svg)) == bool(points)


@pytest.mark.parametrize(
    ("gaps", "points", "words"),
    [
        ([], [], "one or more"),
        ([Gap("a", "b", math.nan)], [], "finite"),
        ([Gap("a", "b", 1.0, -1.0)], [], "0 or more"),
        ([], [CostPoint("a", "b", 0.0, 0.5, 0.4, 0.6)], "cost above 0"),
        ([], [CostPoint("a", "b", 1.0, 0.5, 0.6, 0.6)], "low <= value"),
    ],
)
def test_what_cannot_be_drawn_is_refused(gaps, points, words):
    with pytest.raises(InputError, match=words):
        gaps_and_costs(gaps, points, reference="sat")
