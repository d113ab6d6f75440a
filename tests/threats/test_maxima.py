"""The greatest linear gain in ball and box, against a linear program and a bisection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from linear_oracles import HalfSpace, random_images, random_tensor
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf, linear_gain

SHAPE = (6, 2, 3, 3)
RADII = {Linf: (0.05, 0.4, 1.0), L2: (0.05, 0.7, 9.0), L1: (0.05, 2.0, 40.0)}
CASES = [(kind, radius) for kind, radii in RADII.items() for radius in radii]


def program(threat, gradient, x):
    """Solve max g.(u - v) over u, v >= 0 within the box, with the budget of the norm."""
    slope, pixels = gradient.double().flatten().numpy(), x.double().flatten().numpy()
    up, down = 1 - pixels, pixels
    budget = None
    if threat.norm == "linf":
        up, down = np.minimum(up, threat.radius), np.minimum(down, threat.radius)
    else:
        budget = (np.ones((1, 2 * len(slope))), [threat.radius])
    solved = linprog(
        -np.concatenate((slope, -slope)),
        A_ub=budget and budget[0],
        b_ub=budget and budget[1],
        bounds=list(zip(np.zeros(2 * len(slope)), np.concatenate((up, down)), strict=True)),
    )
    assert solved.success
    return -solved.fun


@pytest.mark.parametrize(("kind", "radius"), [case for case in CASES if case[0] is not L2])
def test_linf_and_l1_are_the_optimum_of_the_linear_program(kind, radius):
    gradient, x = random_tensor(*SHAPE, seed=1), random_images(*SHAPE, seed=2)
    gradient[0, 0] = 0  # pixels without a gradient
    expected = [program(kind(radius), g, i) for g, i in zip(gradient, x, strict=True)]
    assert linear_gain(kind(radius), gradient, x).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "radius"), CASES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_every_norm_attains_the_worst_case_of_a_linear_model(kind, radius, scale):
    """In l2 against a bisection in float64; the gradient of the score is the weight."""
    weight = random_tensor(*SHAPE[1:], seed=3) * scale
    x, threat = random_images(*SHAPE, seed=4), kind(radius)
    expected = HalfSpace(weight).greatest_gain(threat, x, torch.zeros(len(x), dtype=torch.long))
    found = linear_gain(threat, weight.expand(SHAPE), x)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=2e-5)


@pytest.mark.parametrize(("kind", "radius"), CASES)
def test_nothing_is_gained_without_a_gradient(kind, radius):
    x = random_images(*SHAPE, seed=5)
    assert linear_gain(kind(radius), torch.zeros_like(x), x).tolist() == [0.0] * len(x)


def test_a_threat_of_another_norm_is_an_error(monkeypatch):
    monkeypatch.setattr(Linf, "norm", "l0")
    with pytest.raises(InputError, match="Unknown norm of the threat of a linear gain: 'l0'"):
        linear_gain(Linf(0.1), torch.zeros(SHAPE), torch.zeros(SHAPE))
