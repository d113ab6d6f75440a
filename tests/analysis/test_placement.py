from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multirobust.analysis.placement import overlap, place_labels

BOX = (0.0, 0.0, 480.0, 280.0)
coordinate = st.tuples(st.floats(5, 475), st.floats(5, 275))


def markers(anchors):
    return [(x - 4, y - 4, x + 4, y + 4) for x, y in anchors]


def check(anchors, spots):
    for a, b in itertools.combinations(spots, 2):
        assert overlap(a, b) <= 1e-6
    for spot in spots:
        assert all(overlap(spot, marker) <= 1e-6 for marker in markers(anchors))
        assert BOX[0] <= spot[0] + 1e-6
        assert spot[2] <= BOX[2] + 1e-6
        assert BOX[1] <= spot[1] + 1e-6
        assert spot[3] <= BOX[3] + 1e-6


@given(st.lists(coordinate, min_size=1, max_size=12))
@settings(max_examples=50)
def test_labels_of_twelve_points_cover_nothing_and_stay_inside(anchors):
    sizes = [(55.0, 11.0)] * len(anchors)
    check(anchors, place_labels(anchors, sizes, BOX, markers(anchors)))


@pytest.mark.parametrize("anchor", [(240.0, 140.0), (5.0, 5.0), (475.0, 5.0), (475.0, 275.0)])
def test_twelve_points_in_one_place_are_all_labeled_apart(anchor):
    anchors = [anchor] * 12
    check(anchors, place_labels(anchors, [(55.0, 11.0)] * 12, BOX, markers(anchors)))


def test_a_lone_point_is_labeled_close_to_its_right():
    (spot,) = place_labels([(100.0, 100.0)], [(50.0, 10.0)], BOX)
    assert 100 < spot[0] < 110
    assert (spot[1] + spot[3]) / 2 == pytest.approx(100)


@given(st.permutations(range(6)))
@settings(max_examples=10)
def test_the_order_of_the_points_does_not_matter(order):
    anchors = [(100.0 + 7 * i, 100.0 + 3 * i) for i in range(6)]
    straight = place_labels(anchors, [(50.0, 10.0)] * 6, BOX)
    shuffled = place_labels([anchors[i] for i in order], [(50.0, 10.0)] * 6, BOX)
    assert [shuffled[order.index(i)] for i in range(6)] == straight


def test_without_room_labels_are_placed_all_the_same():
    assert len(place_labels([(5.0, 5.0)] * 3, [(50.0, 10.0)] * 3, (0.0, 0.0, 10.0, 10.0))) == 3
