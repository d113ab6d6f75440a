"""WorstCase, Restarts and keep="best": what is chosen among several candidates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from linear_oracles import HalfSpace, network, random_images
from multirobust.attacks import (
    MSD,
    PGD,
    CrossEntropy,
    KLDivergence,
    Margin,
    Restarts,
    WorstCase,
)
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf

X = random_images(8, 3, 6, 6, seed=7)
Y = torch.arange(8) % 4
PARTS = (
    PGD(threat=Linf(0.06), steps=3, step_size=0.02),
    PGD(threat=L2(0.5), steps=3, step_size=0.2),
    PGD(threat=L1(3.0, density=0.05), steps=3, step_size=1.0),
)
OBJECTIVES = [CrossEntropy(), Margin(), KLDivergence()]


def losses(model, objective, *candidates):
    with torch.no_grad():
        loss = objective.bind(model, X, Y)
        return torch.stack([loss(model(candidate)) for candidate in candidates])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_the_loss_of_worst_case_is_the_greatest_of_its_parts_on_each_image(objective):
    model = network().eval()
    generator = torch.Generator().manual_seed(3)
    candidates = [part(model, X, Y, generator=generator) for part in PARTS]
    expected = losses(model, objective, *candidates).amax(0)
    seeded = torch.Generator().manual_seed(3)
    chosen = WorstCase(PARTS, objective)(model, X, Y, generator=seeded)
    assert torch.equal(losses(model, objective, chosen)[0], expected)
    origin = torch.stack([(chosen == c).flatten(1).all(1) for c in candidates])
    assert origin.any(0).all(), "each image is that of one part, whole"


def test_worst_case_is_never_weaker_with_one_more_attack():
    model = network().eval()
    loss = []
    for count in (1, 2, 3):
        seeded = torch.Generator().manual_seed(3)
        chosen = WorstCase(PARTS[:count])(model, X, Y, generator=seeded)
        loss.append(losses(model, CrossEntropy(), chosen)[0])
    assert (loss[0] <= loss[1]).all()
    assert (loss[1] <= loss[2]).all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_restarts_are_never_weaker_than_the_first_attempt(objective):
    model = network().eval()
    first = PARTS[0](model, X, Y, generator=torch.Generator().manual_seed(5))
    seeded = torch.Generator().manual_seed(5)
    several = Restarts(PARTS[0], 4, objective)(model, X, Y, generator=seeded)
    alone, best = losses(model, objective, first, several)
    assert (best >= alone).all()
    assert (best > alone).any()


@pytest.mark.parametrize("seeded", [True, False])
def test_one_restart_is_the_attack_itself(seeded):
    model = network().eval()
    generators = [torch.Generator().manual_seed(5) if seeded else None for _ in range(2)]
    once = Restarts(PARTS[1], 1)(model, X, Y, generator=generators[0])
    assert torch.equal(once, PARTS[1](model, X, Y, generator=generators[1]))


def test_without_a_generator_the_restarts_still_differ():
    """A fresh generator for each attempt would repeat the first one."""
    model = network().eval()
    once, several = (Restarts(PARTS[0], times)(model, X, Y) for times in (1, 6))
    assert not torch.equal(once, several)


class NotANumberAbove(nn.Module):
    """NaN logits for images that are brighter than half on average."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).mean(1, keepdim=True)
        logits = torch.cat((mean, -mean), dim=1)
        return torch.where(mean > 0.5, torch.nan, logits)


def test_a_candidate_with_a_nan_loss_loses_to_any_number():
    x, y = torch.full((2, 1, 2, 2), 0.49), torch.tensor([1, 1])  # brighter is worse, then NaN
    bright = PGD(threat=Linf(0.2), steps=1, step_size=0.2, random_start=False)
    gentle = PGD(threat=Linf(0.005), steps=1, step_size=0.005, random_start=False)
    expected = gentle(NotANumberAbove(), x, y)
    for order in ((bright, gentle), (gentle, bright)):
        assert torch.equal(WorstCase(order)(NotANumberAbove(), x, y), expected)


class Bump(nn.Module):
    """Errs only where the pixel lies in (0.3, 0.4); its margin rises through that window."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixel = x.flatten(1).mean(1, keepdim=True)
        inside = (pixel > 0.3) & (pixel < 0.4)
        return torch.cat((torch.zeros_like(pixel), pixel - 1.4 + 1.2 * inside), dim=1)


def test_keeping_the_best_never_loses_an_iterate_that_fools_the_model():
    x, y = torch.full((1, 1, 1, 1), 0.15), torch.tensor([0])
    options = {"threat": Linf(0.5), "step_size": 0.1, "random_start": False}
    last = PGD(steps=4, **options)(Bump(), x, y)  # 0.25, 0.35, 0.45, 0.55
    best = PGD(steps=4, keep="best", **options)(Bump(), x, y)
    assert Bump()(last).argmax() == 0
    assert Bump()(best).argmax() == 1
    torch.testing.assert_close(best.item(), 0.35)


def test_the_last_iterate_can_be_the_best():
    x, y = torch.full((1, 1, 1, 1), 0.15), torch.tensor([0])
    attack = PGD(threat=Linf(0.5), steps=2, step_size=0.1, random_start=False, keep="best")
    assert Bump()(attack(Bump(), x, y)).argmax() == 1


def test_keeping_the_best_has_at_least_the_margin_of_the_last():
    model = network().eval()
    for part in PARTS:
        best = PGD(threat=part.threat, steps=9, step_size=part.threat.radius, keep="best")
        last = PGD(threat=part.threat, steps=9, step_size=part.threat.radius)
        margins = losses(model, Margin(), best(model, X, Y), last(model, X, Y))
        assert (margins[0] >= margins[1]).all()


def test_every_step_of_msd_is_the_best_of_one_step_in_each_threat():
    """Its own definition, written out once more, on the half-space and on a network."""
    balls = tuple(part.threat for part in PARTS)
    sizes = (0.02, 0.2, 1.0)
    for model in (network().eval(), HalfSpace(torch.linspace(-1, 1, 108), classes=4)):
        x_adv = X
        for _ in range(4):
            x_adv = x_adv.detach().requires_grad_()
            loss = nn.functional.cross_entropy(model(x_adv), Y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach()
            with torch.no_grad():
                steps = [
                    ball.project(x_adv + size * ball.ascent_direction(gradient, x_adv), X)
                    for ball, size in zip(balls, sizes, strict=True)
                ]
            best = losses(model, CrossEntropy(), *steps).argmax(0)
            x_adv = torch.stack(steps)[best, torch.arange(len(X))]
        attack = MSD(balls=balls, step_sizes=sizes, steps=4)
        assert torch.equal(attack(model, X, Y), x_adv)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WorstCase(()), "WorstCase: attacks must name at least one attack, got none"),
        (lambda: Restarts(PARTS[0], 0), "Restarts: times must be at least 1, got 0"),
        (lambda: PGD(threat=Linf(0.1), steps=0, step_size=0.1), "PGD: steps must be .* got 0"),
        (lambda: PGD(threat=Linf(0.1), steps=1, step_size=0.0), "PGD: a step size .* got 0.0"),
        (lambda: PGD(threat=Linf(0.1), steps=1, step_size=float("nan")), "PGD: a step size"),
        (
            lambda: PGD(threat=Linf(0.1), steps=1, step_size=0.1, keep="bst"),
            "Unknown keep: 'bst'. Did you mean 'best'. Known: best, last",
        ),
        (lambda: MSD(balls=(), step_sizes=()), "MSD: needs at least one threat"),
        (lambda: MSD(balls=(Linf(0.1),), step_sizes=(0.1, 0.2)), "got 1 threats and 2 step sizes"),
        (lambda: MSD(balls=(Linf(0.1),), step_sizes=(-0.1,)), "MSD: a step size .* got -0.1"),
    ],
)
def test_bad_settings_are_one_clear_error(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("attack", [*PARTS, Restarts(PARTS[0], 2), WorstCase(PARTS)], ids=repr)
def test_the_repr_of_an_attack_is_its_identity(attack):
    scope = {
        kind.__name__: kind
        for kind in (PGD, Restarts, WorstCase, Linf, L1, L2, CrossEntropy, KLDivergence, Margin)
    }
    again = eval(repr(attack), scope)
    assert again == attack
    assert hash(again) == hash(attack)
