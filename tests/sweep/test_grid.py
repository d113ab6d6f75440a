"""Grids: all combinations, in order, each with a name of its own that a folder can have."""

from __future__ import annotations

import itertools
import re

import pytest

from multirobust.errors import InputError
from multirobust.sweep import Point, points_of


def test_no_axis_is_one_point_without_a_name():
    assert points_of([]) == [Point()]


def test_points_are_the_product_with_the_last_axis_fastest():
    points = points_of(["training.peak_lr=0.05, 0.1", "training.epochs=3,4,5"])
    expected = [
        (f"training.peak_lr={lr}", f"training.epochs={epochs}")
        for lr, epochs in itertools.product(("0.05", "0.1"), "345")
    ]
    assert [point.overrides for point in points] == expected
    assert points[0].name == "training.peak_lr=0.05_training.epochs=3"


def test_commas_within_brackets_and_quotes_belong_to_a_value():
    values = ["[4, 8]", '"a,b"', "{x = [1, 2], y = 3}", "7"]
    points = points_of([f"some.field={','.join(values)}"])
    assert [point.overrides for point in points] == [(f"some.field={v}",) for v in values]


def test_names_differ_and_fit_into_a_path():
    values = ["[1,2]", "[12]", "1", "'1'", "../x", "a b", "a-b"]
    names = [point.name for point in points_of([f"f.g={','.join(values)}"])]
    assert len(set(names)) == len(values)
    assert all(re.fullmatch(r"[\w.+=-]+", name) for name in names), names
    assert all(not name.startswith(".") for name in names)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["training.peak_lr"], "must be a field and its values"),
        (["training.peak_lr="], "must be a field and its values"),
        (["=1,2"], "must be a field and its values"),
        (["training.peak_lr=1,,2"], "must be a field and its values"),
        (["training.peak_lr=1,1"], "each value may stand once"),
        (["training.peak_lr=1", "training.peak_lr=2"], "each field may stand once"),
    ],
)
def test_an_axis_that_is_written_otherwise_is_refused(axes, message):
    with pytest.raises(InputError, match=message):
        points_of(axes)
