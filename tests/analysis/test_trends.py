from __future__ import annotations

import numpy as np
import pytest

from drawings import check_drawing, description, texts
from multirobust.analysis import accuracy_against, metric_series, seed_interval, training_curves
from multirobust.errors import InputError
from multirobust.evaluation.intervals import wilson


def test_several_seeds_have_students_interval_of_their_mean():
    # Mean 0.5, standard deviation 0.02, and 4.3027 is the table's t for 2 degrees and 97.5 %.
    mean, low, high = seed_interval([0.48, 0.50, 0.52], 500)
    half = 4.3027 * 0.02 / np.sqrt(3)
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-5)


def test_one_seed_has_the_wilson_interval_of_its_images():
    assert seed_interval([0.4], 500) == (0.4, *wilson(0.4, 500))


def test_an_interval_stays_within_zero_and_one():
    assert seed_interval([1.0, 0.9], 10)[2] == 1
    assert seed_interval([0.0, 0.1], 10)[1] == 0


@pytest.mark.parametrize("shares", [[], [1.2], [float("nan")]])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(InputError, match="shares"):
        seed_interval(shares, 10)


def trend(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    share = np.stack([np.linspace(0.3, 0.4, count), np.linspace(0.97, 0.95, count)])
    return share, share - 0.02, share + 0.02


@pytest.mark.parametrize("scale", ["categorical", "linear", "log"])
@pytest.mark.parametrize("count", [1, 5])
def test_a_trend_shows_every_value_and_says_every_accuracy(scale, count):
    values = [float(2**i) for i in range(count)]
    svg = check_drawing(
        lambda: accuracy_against(values, ["union", "clean"], *trend(count), scale=scale)
    )
    assert {"union", "clean", "β", "Accuracy (%)", f"{values[-1]:g}"} <= set(texts(svg))
    assert "union at β 1: 30.0 % [28.0, 32.0]." in description(svg)


def test_a_value_that_was_not_evaluated_is_left_out():
    arrays = [np.where(np.arange(5) == 2, np.nan, array) for array in trend(5)]
    svg = accuracy_against([1, 2, 4, 8, 16], ["union", "clean"], *arrays)
    assert "union at β 4" not in description(svg)
    assert "union at β 8" in description(svg)


def test_trends_that_cannot_be_drawn_are_refused():
    with pytest.raises(InputError, match="ascend"):
        accuracy_against([2, 1], ["union", "clean"], *trend(2))
    with pytest.raises(InputError, match="above 0"):
        accuracy_against([0, 1], ["union", "clean"], *trend(2), scale="log")
    with pytest.raises(InputError, match=r"shape \(1, 2\)"):
        accuracy_against([1, 2], ["union"], *trend(2))
    with pytest.raises(InputError, match="scale"):
        accuracy_against([1, 2], ["union", "clean"], *trend(2), scale="cubic")
    with pytest.raises(InputError, match="at least one"):
        accuracy_against([], [], *[np.zeros((0, 0))] * 3)


ROWS = [
    {"step": 10, "epoch": 1, "lr": 0.1, "loss": 2.0, "forwards": 3.0},
    {"step": 11, "epoch": 1, "lr": 0.2, "loss": 13.0, "forwards": 3.0},
    {"step": 21, "epoch": 2, "lr": 0.3, "loss": 1.0, "forwards": 3.0},
]


def test_an_epoch_is_the_mean_over_its_steps_and_its_last_learning_rate():
    series = metric_series(ROWS)
    assert series["loss"] == [(11, pytest.approx(3.0)), (21, 1.0)]  # (10 * 2 + 1 * 13) / 11
    assert series["lr"] == [(11, 0.2), (21, 0.3)]
    assert set(series) == {"loss", "lr"}


def test_by_row_every_line_is_a_point():
    assert metric_series(ROWS, by="row")["loss"] == [(10, 2.0), (11, 13.0), (21, 1.0)]
    assert metric_series([]) == {}
    with pytest.raises(InputError, match="by"):
        metric_series(ROWS, by="week")
    with pytest.raises(InputError, match="step and epoch"):
        metric_series([{"step": 1, "loss": 2.0}])


@pytest.mark.parametrize("runs", [1, 12])
def test_training_curves_have_a_panel_a_term_and_name_every_run(runs):
    series = {f"run_{i}": metric_series(ROWS) for i in range(runs)}
    series["run_0"]["live_gradient"] = [(11, 0.5)]
    svg = check_drawing(lambda: training_curves(series))
    panels = {"total loss", "learning rate", "live gradient"}
    assert {*series, *panels, "Step"} <= set(texts(svg))
    assert "run_0, loss: 3 at step 11, 1 at step 21." in description(svg)


def test_training_curves_without_a_point_are_refused():
    for nothing in ({}, {"run": {}}, {"run": {"loss": []}}):
        with pytest.raises(InputError, match="series"):
            training_curves(nothing)


def test_any_name_gives_valid_svg():
    name = "<b>&\"'\x00$x$"
    svg = training_curves({name: {"loss": [(1, float("nan")), (2, 1.0)]}})
    assert "<b>&\"' $x$" in texts(svg)
