"""The learning rate against the published code's `numpy.interp`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multirobust.training import Triangular


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
