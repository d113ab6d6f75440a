from __future__ import annotations

import doctest

import pytest
import torch
from torch import nn

import multirobust.attacks.passes
from linear_oracles import network, random_images
from multirobust.attacks import (
    MSD,
    PGD,
    KLDivergence,
    PassMeter,
    Restarts,
    WorstCase,
    input_gradient,
)
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf

T, IMAGES = 3, 5
PGD_LINF = PGD(threat=Linf(0.1), steps=T, step_size=0.03)
BEST = PGD(threat=L2(0.5), steps=T, step_size=0.2, keep="best")
KL = PGD(threat=Linf(0.1), steps=T, step_size=0.03, objective=KLDivergence())
ALL_THREE = MSD(balls=(Linf(0.1), L2(0.5), L1(2.0)), step_sizes=(0.03, 0.2, 0.5), steps=T)


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (PGD_LINF, T, T),
        (BEST, T + 1, T),
        (KL, T + 1, T),
        (ALL_THREE, T * (1 + 3), T),
        (Restarts(PGD_LINF, 4), 4 * (T + 1), 4 * T),
        (WorstCase((PGD_LINF, BEST)), T + (T + 1) + 2, 2 * T),
        (Restarts(KL, 2, KLDivergence()), 2 * (T + 2) + 1, 2 * T),
    ],
    ids=["pgd", "best", "kl", "msd", "restarts", "worst_case", "restarts_kl"],
)
def test_an_attack_costs_what_its_docstring_says(attack, forwards, backwards):
    model = network().eval()
    with PassMeter(model) as meter:
        attack(model, random_images(IMAGES, 3, 6, 6), torch.arange(IMAGES) % 4)
    assert (meter.forwards, meter.backwards) == (forwards * IMAGES, backwards * IMAGES)


def test_a_training_pass_is_one_forward_and_one_backward():
    model = network()
    with PassMeter(model) as meter:
        model(random_images(IMAGES, 3, 6, 6)).sum().backward()
    assert (meter.forwards, meter.backwards) == (IMAGES, IMAGES)


def test_a_pass_that_no_gradient_follows_is_no_backward_pass():
    model = network().eval()
    with PassMeter(model) as meter, torch.no_grad():
        model(random_images(IMAGES, 3, 6, 6))
    assert (meter.forwards, meter.backwards) == (IMAGES, 0)


def test_counting_stops_with_the_block_also_after_an_exception():
    model, x = network().eval(), random_images(1, 3, 6, 6)
    meter = PassMeter(model)
    with pytest.raises(KeyError), meter:
        raise KeyError
    model(x)
    assert meter.forwards == 0
    with meter:
        model(x)
    with meter:
        model(x)
    assert meter.forwards == 2, "entering again goes on counting"


def test_the_doctest_of_the_meter_runs():
    names = {"torch": torch, "nn": nn}
    result = doctest.testmod(multirobust.attacks.passes, extraglobs=names)
    assert result.attempted >= 3
    assert result.failed == 0


def test_input_gradient_equals_central_differences_in_float64():
    model = network().double().eval()
    x, y = random_images(4, 3, 6, 6, dtype=torch.float64), torch.arange(4)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, y, reduction="none")

    gradient, logits = input_gradient(model, x, loss)
    torch.testing.assert_close(logits, model(x).detach(), rtol=0, atol=0)
    assert not gradient.requires_grad
    assert not logits.requires_grad
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        with torch.no_grad():
            up, down = (loss(model(x + h * direction)).sum() for h in (1e-6, -1e-6))
        expected = (up - down) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("how", ["detach", "no_grad", "round"])
def test_a_model_that_blocks_the_gradient_is_one_clear_error(how):
    """Such a model must not pass as robust."""

    class Blocked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if how == "no_grad":
                with torch.no_grad():
                    return x.flatten(1)
            return x.detach().flatten(1) if how == "detach" else (x > 0.5).flatten(1).float()

    x = random_images(2, 1, 2, 2)
    with pytest.raises(InputError, match="model: its logits must depend differentiably on x"):
        PGD_LINF(Blocked(), x, torch.tensor([0, 1]))
