"""Attacks against the closed-form worst case of a linear classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from linear_oracles import HalfSpace, random_images, random_tensor
from multirobust.attacks import MSD, PGD, Restarts, WorstCase
from multirobust.threats import L1, L2, Linf

SHAPE = (2, 4, 4)
PIXELS = 32
WIDE = {"linf": 0.3, "l2": 2.0, "l1": 6.0}
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}

every_norm = pytest.mark.parametrize(
    "threat", [Linf(0.2), L2(0.8), L1(2.5, density=1 / PIXELS)], ids=lambda t: t.norm
)
every_class_count = pytest.mark.parametrize("classes", [2, 5])


def half_space(classes: int = 2) -> HalfSpace:
    return HalfSpace(random_tensor(*SHAPE, seed=3), bias=0.1, classes=classes)


def labels(count: int, classes: int) -> torch.Tensor:
    return torch.arange(count) % classes


def assert_attained(gain: torch.Tensor, optimum: torch.Tensor, shortfall: float) -> None:
    """Never above the optimum, and below it by no more than this share."""
    assert (gain <= optimum * (1 + 2e-6)).all(), "left the threat, or the oracle is wrong"
    assert (gain >= optimum * (1 - shortfall)).all(), (gain / optimum).min()


@every_norm
def test_the_oracle_equals_linear_or_quadratic_programming(threat):
    model, x, y = half_space(), random_images(2, *SHAPE, seed=5), torch.tensor([0, 1])
    optimum = model.greatest_gain(threat, x, y)
    for image, label, expected in zip(x, y, optimum, strict=True):
        slope = model.weight.detach().double().numpy() * (1 if label == 0 else -1)
        low, high = -image.flatten().double().numpy(), 1 - image.flatten().double().numpy()
        if threat.norm == "linf":
            bounds = list(zip(np.maximum(low, -0.2), np.minimum(high, 0.2), strict=True))
            best = -linprog(-slope, bounds=bounds).fun
        elif threat.norm == "l1":  # delta = up - down
            bounds = [(0, h) for h in high] + [(0, -lo) for lo in low]
            budget = np.ones((1, 2 * PIXELS))
            best = -linprog(
                np.concatenate((-slope, slope)), A_ub=budget, b_ub=[threat.radius], bounds=bounds
            ).fun
        else:  # weak duality: min over mu of the separable maximum plus mu r^2 / 2
            mus = np.logspace(-2, 2, 4001)[:, None]
            delta = np.clip(slope / mus, low, high)
            dual = (slope * delta - mus * delta**2 / 2).sum(1) + mus[:, 0] * threat.radius**2 / 2
            best = dual.min()
        assert expected.item() == pytest.approx(best, rel=1e-5)


@every_norm
@every_class_count
def test_pgd_attains_the_dual_norm_where_the_box_does_not_bind(threat, classes):
    model, y = half_space(classes), labels(6, classes)
    x = torch.full((6, *SHAPE), 0.5)
    small = type(threat)(threat.radius / 10)
    if threat.norm == "l1":
        small = L1(0.25, density=1 / PIXELS)
    x_adv = PGD(threat=small, steps=40, step_size=small.radius / 4)(model, x, y)
    dual = small.radius * model.weight.detach().double().norm(DUAL[threat.norm])
    gain = model.gain(x_adv, x, y)
    assert_attained(gain, dual.expand(6), 1e-4)


@every_norm
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_attains_the_optimum_where_the_box_binds(threat, random_start):
    if threat.norm == "l1" and random_start:
        pytest.skip("one pixel a step is slow to gather what a random start has spread")
    model, y = half_space(3), labels(6, 3)
    x = random_images(6, *SHAPE, seed=2)
    optimum = model.greatest_gain(threat, x, y)
    dual = threat.radius * model.weight.detach().double().norm(DUAL[threat.norm])
    assert (optimum < 0.98 * dual).all(), "the box does not bind"
    attack = PGD(
        threat=threat,
        steps=120,
        step_size=threat.radius / 20,
        random_start=random_start,
    )
    # The l1 step into one pixel takes a little from those that are full: hence the 1 %.
    shortfall = 0.01 if threat.norm == "l1" else 1e-3
    assert_attained(model.gain(attack(model, x, y), x, y), optimum, shortfall)


def test_a_dense_l1_step_falls_short_of_the_dual_norm():
    """What `density` costs on a linear model: a step is shared among the top pixels."""
    model, x, y = half_space(), torch.full((1, *SHAPE), 0.5), torch.tensor([0])
    weight = model.weight.detach().double().abs().sort(descending=True).values
    attack = PGD(threat=L1(0.25, density=4 / PIXELS), steps=60, step_size=0.1, random_start=False)
    gain = model.gain(attack(model, x, y), x, y)
    assert gain.item() == pytest.approx(0.25 * weight[:4].mean().item(), rel=1e-4)


@pytest.mark.parametrize("winner", ["linf", "l2", "l1"])
def test_msd_attains_the_greatest_of_the_optima(winner):
    model, x, y = half_space(), random_images(4, *SHAPE, seed=2), labels(4, 2)
    radii = {"linf": 0.05, "l2": 0.2, "l1": 0.3} | {winner: WIDE[winner]}
    balls = (Linf(radii["linf"]), L2(radii["l2"]), L1(radii["l1"], density=1 / PIXELS))
    optima = torch.stack([model.greatest_gain(ball, x, y) for ball in balls])
    greatest = optima.max(dim=0).values
    assert (optima.argmax(dim=0) == ["linf", "l2", "l1"].index(winner)).all()
    attack = MSD(balls=balls, step_sizes=tuple(ball.radius / 10 for ball in balls), steps=40)
    x_adv = attack(model, x, y)
    assert_attained(model.gain(x_adv, x, y), greatest, 0.05)
    index = ["linf", "l2", "l1"].index(winner)
    assert (balls[index].distance(x_adv, x) <= balls[index].radius * (1 + 1e-6)).all()


def test_msd_whose_steps_reach_the_boundary_attains_the_greatest_optimum_at_once():
    model = HalfSpace(torch.linspace(0.1, 2, 2))
    x, y = torch.full((2, 1, 1, 2), 0.5), torch.tensor([0, 1])
    balls = (Linf(0.1), L2(0.15), L1(0.18, density=0.5))
    greatest = torch.stack([model.greatest_gain(ball, x, y) for ball in balls]).amax(0)
    attack = MSD(balls=balls, step_sizes=tuple(ball.radius for ball in balls), steps=1)
    assert_attained(model.gain(attack(model, x, y), x, y), greatest, 1e-5)


def test_worst_case_attains_the_greatest_optimum_of_its_parts():
    model, x, y = half_space(), random_images(6, *SHAPE, seed=2), labels(6, 2)
    balls = (Linf(0.05), L2(0.18))
    parts = tuple(PGD(threat=ball, steps=60, step_size=ball.radius / 5) for ball in balls)
    optima = torch.stack([model.greatest_gain(ball, x, y) for ball in balls])
    assert optima.argmax(0).unique().numel() == 2, "the two norms should share the images"
    x_adv = WorstCase(parts)(model, x, y)
    assert_attained(model.gain(x_adv, x, y), optima.amax(0), 1e-3)


def test_restarts_keep_the_best_start_of_each_image():
    """One step of a tenth of the radius: what counts is where each attempt started."""
    model, x, y = half_space(), torch.full((6, *SHAPE), 0.5), labels(6, 2)
    attack = PGD(threat=L2(0.3), steps=1, step_size=0.03)
    generator = torch.Generator().manual_seed(8)
    attempts = [attack(model, x, y, generator=generator) for _ in range(5)]
    best = torch.stack([model.gain(attempt, x, y) for attempt in attempts]).amax(0)
    seeded = torch.Generator().manual_seed(8)
    gain = model.gain(Restarts(attack, 5)(model, x, y, generator=seeded), x, y)
    torch.testing.assert_close(gain, best)
