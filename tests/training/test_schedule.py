"""The learning rate against the published code's `numpy.interp`, and PyTorch's own cosine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from multirobust.config import TrainingConfig
from multirobust.training import Cosine, Piecewise, Triangular, schedule_of


@given(
    epochs=st.integers(1, 200), length=st.integers(1, 500), peak=st.floats(1e-4, 1), data=st.data()
)
def test_the_rate_is_the_published_interpolation(epochs, length, peak, data):
    steps = epochs * length
    step = data.draw(st.integers(0, steps - 1))
    expected = np.interp((step + 1) / steps * epochs, [0, epochs * 2 / 5, epochs], [0, peak, 0])
    assert Triangular(peak, 0.4).at((step + 1) / steps) == pytest.approx(expected, abs=1e-12 * peak)


@given(steps=st.integers(1, 1000), peak_at=st.floats(0.01, 0.99))
def test_the_last_step_has_rate_zero_and_none_is_negative(steps, peak_at):
    rates = [Triangular(0.21, peak_at).at((step + 1) / steps) for step in range(steps)]
    assert rates[-1] == 0
    assert all(0 <= rate <= 0.21 for rate in rates)


def test_every_parameter_group_gets_the_rate():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (1.0, 2.0, 3.0)]
    optimizer = torch.optim.SGD(groups)
    rate = Triangular(0.21).apply(optimizer, 0.4)
    assert [group["lr"] for group in optimizer.param_groups] == [rate] * 3 == [0.21] * 3


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_the_cosine_is_that_of_pytorch(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for step in range(steps):
        optimizer.step()
        theirs.step()
        rate = Cosine(0.3).at((step + 1) / steps)
        assert rate == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
    assert rate == pytest.approx(0, abs=1e-12)


def test_a_recipe_names_its_schedule():
    assert schedule_of(TrainingConfig(peak_lr=0.3, peak_at=0.1)) == Triangular(0.3, 0.1)
    assert schedule_of(TrainingConfig(peak_lr=0.3, schedule="cosine")) == Cosine(0.3)
    piecewise = TrainingConfig(peak_lr=0.3, schedule="piecewise", drops=(0.5,))
    assert schedule_of(piecewise) == Piecewise(0.3, (0.5,))


@pytest.mark.parametrize("length", [1, 5, 100])
def test_the_piecewise_rate_is_that_of_the_published_fine_tuning(length):
    """Three epochs: 0.05, 0.005, 0.0005; a step that ends an epoch has the next one's."""
    schedule = Piecewise(0.05)
    rates = [schedule.at((step + 1) / (3 * length)) for step in range(3 * length)]
    epochs = [min((step + 1) // length, 2) for step in range(3 * length)]
    assert rates == pytest.approx([[0.05, 0.005, 0.0005][epoch] for epoch in epochs])


@pytest.mark.parametrize("drops", [(), (0.0,), (1.0,), (0.5, 0.5), (0.7, 0.3)])
def test_drops_rise_within_the_training(drops):
    with pytest.raises(ValidationError, match="drops"):
        TrainingConfig(drops=drops)
