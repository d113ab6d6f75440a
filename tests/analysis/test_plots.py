from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from multirobust.analysis import per_norm_bars, union_against_cost
from multirobust.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"
GROUPS = ["clean", "linf", "l1", "l2", "union"]


def bars(n, groups=GROUPS, seed=0):
    values = np.random.default_rng(seed).random((n, len(groups)))
    names = [f"defense_{i}" for i in range(n)]
    return names, list(groups), values, values * 0.9, values + 0.1 * (1 - values)


def points(n, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.random(n)
    costs = 10 ** rng.uniform(0, 2, n)
    return [f"defense_{i}" for i in range(n)], costs, values, values * 0.9, values


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("n", [1, 5, 12])
def test_bars_show_every_name_group_and_value_as_text(n):
    names, groups, values, *ends = bars(n)
    shown = texts(per_norm_bars(names, groups, values, *ends))
    for text in (*names, "clean", "ℓ∞", "ℓ₁", "ℓ₂", "union", "Accuracy (%)"):
        assert text in shown
    for value in values.ravel():
        assert f"{100 * value:.1f}" in shown


@pytest.mark.parametrize("n", [1, 5, 12])
def test_points_show_every_name_and_both_axes_with_units(n):
    shown = texts(union_against_cost(*points(n), "Training time (hours)"))
    for text in (*points(n)[0], "Training time (hours)", "Accuracy under the union of attacks (%)"):
        assert text in shown


@pytest.mark.parametrize(
    "draw", [lambda: per_norm_bars(*bars(3)), lambda: union_against_cost(*points(3))]
)
def test_the_same_arrays_give_the_same_bytes_without_a_date(draw):
    svg = draw()
    assert svg == draw()
    assert "<dc:date>" not in svg


def test_drawing_leaves_matplotlibs_settings_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    per_norm_bars(*bars(2))
    assert dict(mpl.rcParams) == before


def test_missing_values_are_named_not_drawn_as_zero():
    names, groups, values, low, high = bars(2)
    values[1, 2] = low[1, 2] = high[1, 2] = np.nan
    assert texts(per_norm_bars(names, groups, values, low, high)).count("not evaluated") == 1


def test_bar_lengths_are_proportional_to_the_values():
    values = np.array([[0.25, 1.0]])
    svg = per_norm_bars(["a"], ["clean", "linf"], values, values, values)
    widths = []
    for color in ("#b8b8b8", "#0072b2"):
        paths = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: {color}"', svg)
        xs = [float(x) for x in re.findall(r"[ML] (-?[\d.]+) ", paths[0])]
        widths.append(max(xs) - min(xs))
    assert widths[0] / widths[1] == pytest.approx(0.25, rel=1e-4)


def test_threats_without_a_color_of_their_own_get_different_ones():
    svg = per_norm_bars(*bars(1, groups=["clean", "spatial", "jpeg"]))
    assert "#cc79a7" in svg
    assert "#56b4e9" in svg


@pytest.mark.parametrize("name", ["<script>&\"'", "$x$_^\\", "雪 name", "a\x00b\n", "x" * 60])
def test_any_name_gives_valid_svg_that_shows_it(name):
    one = np.array([0.5])
    drawn = (
        per_norm_bars([name], ["clean"], one[:, None], one[:, None], one[:, None]),
        union_against_cost([name], one, one, one, one),
    )
    expected = re.sub(r"[\x00\n]", " ", name).strip()
    for svg in drawn:
        assert expected in [text.strip() for text in texts(svg)]


@pytest.mark.parametrize("costs", [[1.0, 2.0], [1.0, 1000.0], [5.0, 5.0]])
def test_costs_far_apart_or_equal_can_be_drawn(costs):
    half = np.array([0.5, 0.5])
    shown = texts(union_against_cost(["a", "b"], np.array(costs), half, half, half))
    assert {"a", "b"} <= set(shown)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: per_norm_bars([], GROUPS, *[np.zeros((0, 5))] * 3), "at least one"),
        (lambda: per_norm_bars(["a"], GROUPS, *[np.zeros((1, 4))] * 3), r"shape \(1, 5\)"),
        (lambda: per_norm_bars(["a"], ["clean"], *[np.full((1, 1), 43.0)] * 3), r"in \[0, 1\]"),
        (lambda: union_against_cost(["a"], np.zeros(1), *[np.zeros(1)] * 3), "positive finite"),
        (lambda: union_against_cost(["a"], np.ones(2), *[np.zeros(1)] * 3), "1 positive"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(draw, message):
    with pytest.raises(InputError, match=message):
        draw()
