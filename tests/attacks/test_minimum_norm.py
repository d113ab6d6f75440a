"""Attacks that look for the closest adversarial image: how close, and what they do on failure."""

from __future__ import annotations

import dataclasses
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from linear_oracles import HalfSpace, network, random_images, random_tensor
from multirobust.attacks.base import Attack
from multirobust.attacks.brendel_bethge import BrendelBethge
from multirobust.attacks.from_foolbox import CarliniWagner, ElasticNet, SaltAndPepper
from multirobust.attacks.passes import PassMeter
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf, Threat

LINF, TWO, ONE = Linf(0.1), L2(0.6), L1(3.0)
BOUNDARY = {
    f"bb_{ball.norm}": BrendelBethge(threat=ball, steps=12, starts=2) for ball in (LINF, TWO, ONE)
}
DESCENTS = {
    "carlini_wagner": CarliniWagner(threat=TWO, rounds=5, steps=12, step_size=0.1),
    "elastic_net": ElasticNet(threat=ONE, rounds=5, steps=12, step_size=0.1),
}
ATTACKS = BOUNDARY | DESCENTS | {"salt_and_pepper": SaltAndPepper(threat=ONE, steps=20)}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
X = random_images(6, 3, 6, 6, seed=21)
Y = torch.arange(6) % 4


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def half_space(size: int = 5) -> tuple[HalfSpace, Tensor, Tensor]:
    """A linear model of two classes, images of both, all classified correctly.

    No pixel is near 0 or 1: there the gradients of Carlini and Wagner's attack vanish.
    """
    model = HalfSpace(random_tensor(size * size, seed=5), bias=0.3)
    x = random_images(12, 1, size, size, seed=6) * 0.9 + 0.05
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def least_distance(model: HalfSpace, norm: type[Threat], x: Tensor, y: Tensor) -> Tensor:
    """Bisect, in float64, the radius whose greatest gain reaches the boundary."""
    needed = model.score(x.double()).abs().detach()
    low, high = torch.zeros(len(x)).double(), torch.full((len(x),), widest(norm, x)).double()
    for _ in range(40):
        middle = (low + high) / 2
        rows = zip(x.split(1), y.split(1), middle.tolist(), strict=True)
        gains = torch.cat([model.greatest_gain(norm(r), one, label) for one, label, r in rows])
        low, high = (
            torch.where(gains < needed, middle, low),
            torch.where(gains < needed, high, middle),
        )
    return high


def widest(norm: type[Threat], x: Tensor) -> float:
    """Return a radius that holds the whole box, and that the threat takes."""
    return 1.0 if norm is Linf else float(x[0].numel())


def distances(attack: Attack, x_adv: Tensor, x: Tensor) -> Tensor:
    (threat,) = attack.threats
    return threat.distance(x_adv.double(), x.double())


@pytest.mark.parametrize(
    ("attack", "excess"),
    [
        (BrendelBethge(threat=LINF, steps=60), 0.01),
        (BrendelBethge(threat=TWO, steps=60), 0.01),
        (BrendelBethge(threat=ONE, steps=60), 0.01),
        (CarliniWagner(threat=TWO, rounds=6, steps=40, step_size=0.1), 0.05),
        (ElasticNet(threat=ONE, rounds=6, steps=60, step_size=0.05), 0.25),
    ],
    ids=["bb_linf", "bb_l2", "bb_l1", "carlini_wagner", "elastic_net"],
)
def test_a_search_comes_close_to_the_least_distance_of_a_linear_model(attack, excess):
    model, x, y = half_space()
    model = model.double()
    x = x.double()
    x_adv = attack.search(model, x, y, generator=seeded())
    with torch.no_grad():
        assert (model(x_adv).argmax(1) != y).all()
    least = least_distance(model, type(attack.threat), x, y)
    found = distances(attack, x_adv, x)
    assert (found >= least * (1 - 1e-6)).all()
    assert (found / least).median() <= 1 + excess


@every_attack
def test_an_image_is_adversarial_within_ball_and_box_or_the_clean_one(attack):
    model = network().eval()
    x_adv = attack(model, X, Y, generator=seeded())
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (distances(attack, x_adv, X) <= attack.threat.radius).all()
    with torch.no_grad():
        fooled = model(x_adv).argmax(1) != Y
    torch.testing.assert_close(x_adv[~fooled], X[~fooled], rtol=0, atol=0)


@every_attack
def test_a_radius_decides_what_breaks_and_a_search_ignores_it(attack):
    model = network().eval()
    with torch.no_grad():
        y = model(X).argmax(1)
    far = attack.search(model, X, y, generator=seeded())
    small = dataclasses.replace(attack, threat=dataclasses.replace(attack.threat, radius=1e-4))
    torch.testing.assert_close(small.search(model, X, y, generator=seeded()), far)
    torch.testing.assert_close(small(model, X, y, generator=seeded()), X, rtol=0, atol=0)


@every_attack
def test_the_same_generator_gives_the_same_images_and_global_generators_stay(attack):
    model = network().eval()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = attack.search(model, X, Y, generator=seeded())
    torch.rand(3)
    torch.set_rng_state(states[0])
    second = attack.search(model, X, Y, generator=seeded())
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    torch.testing.assert_close(attack(model, X, Y), attack(model, X, Y), rtol=0, atol=0)


@pytest.mark.parametrize("attack", DESCENTS.values(), ids=DESCENTS)
def test_without_early_aborts_a_batch_gives_what_its_images_give_one_by_one(attack):
    attack = dataclasses.replace(attack, abort_early=False)
    model = network().eval().double()
    x = X.double()
    batch = attack.search(model, x, Y)
    one_by_one = [attack.search(model, a, b) for a, b in zip(x.split(1), Y.split(1), strict=True)]
    torch.testing.assert_close(batch, torch.cat(one_by_one), rtol=0, atol=1e-6)


class Constant(nn.Module):
    """Every image is of class 0; the logits depend on it, but never change order."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).mean(1, keepdim=True)
        return torch.cat((score + 2, -score, score), dim=1)


@pytest.mark.parametrize("attack", BOUNDARY.values(), ids=BOUNDARY)
def test_an_image_without_a_start_comes_back_as_nan(attack):
    x_adv = attack(Constant(), X, torch.zeros(6, dtype=torch.int64))
    assert x_adv.isnan().all()


@pytest.mark.parametrize("name", ["carlini_wagner", "elastic_net", "salt_and_pepper"])
def test_an_attack_that_needs_no_start_returns_the_clean_image_where_it_finds_none(name):
    y = torch.zeros(6, dtype=torch.int64)
    torch.testing.assert_close(ATTACKS[name](Constant(), X, y), X, rtol=0, atol=0)
    torch.testing.assert_close(ATTACKS[name].search(Constant(), X, y), X, rtol=0, atol=0)


class Brightness(nn.Module):
    """Class 1 only for images of nearly equal pixels: no noise and no other image starts there."""

    def forward(self, x: Tensor) -> Tensor:
        spread = x.flatten(1).std(1)
        return torch.stack((torch.zeros_like(spread), 0.02 - spread), dim=1)


@pytest.mark.parametrize("attack", BOUNDARY.values(), ids=BOUNDARY)
def test_a_later_kind_of_start_is_tried_when_the_first_kinds_fail(attack):
    y = torch.zeros(6, dtype=torch.int64)
    x_adv = attack.search(Brightness(), X, y, generator=seeded())
    assert x_adv.isfinite().all()
    with torch.no_grad():
        assert (Brightness()(x_adv).argmax(1) == 1).all()


class PartlyNaN(nn.Module):
    """The logits of bright images are NaN."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1, keepdim=True) > 0.7
        return torch.where(bright, torch.nan, self.model(x))


@every_attack
def test_an_image_whose_logits_are_nan_fails_alone(attack):
    model = PartlyNaN(network().eval())
    x = torch.cat((X[:2] * 0.3, X[2:3] * 0.1 + 0.9))
    y = Y[:3]
    x_adv = attack(model, x, y, generator=seeded())
    assert x_adv[2].isnan().all()
    assert attack.search(network().eval(), x[:2], y[:2], generator=seeded()).isfinite().all()


@every_attack
def test_a_misclassified_image_is_returned_after_one_query(attack):
    model = network().eval()
    with torch.no_grad():
        y = (model(X).argmax(1) + 1) % 4
    with PassMeter(model) as meter:
        torch.testing.assert_close(attack(model, X, y), X, rtol=0, atol=0)
    assert (meter.forwards, meter.backwards) == (6, 0)


@every_attack
def test_broken_images_cost_no_more_passes(attack):
    model = network().eval()
    with torch.no_grad():
        y = model(X).argmax(1)
    spent = []
    for radius in (1e-6, widest(type(attack.threat), X)):
        ball = dataclasses.replace(attack.threat, radius=radius)
        with PassMeter(model) as meter:
            dataclasses.replace(attack, threat=ball)(model, X, y, generator=seeded())
        spent.append(meter.forwards + meter.backwards)
    assert 0 < spent[1] < spent[0]


@every_attack
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_model_stays_as_it_was(attack, training):
    model = network().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = X.clone(), Y.clone()
    attack(model, x, y, generator=seeded())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(module.training is training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close((x, y), (X, Y), rtol=0, atol=0)


@every_attack
def test_two_classes_and_half_precision_logits_are_enough(attack):
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x).to(torch.bfloat16)

    model, x, y = half_space(4)
    assert attack.search(Half(), x, y, generator=seeded()).isfinite().all()


@pytest.mark.parametrize("attack", (BOUNDARY | DESCENTS).values(), ids=BOUNDARY | DESCENTS)
def test_a_model_without_gradients_is_an_input_error(attack):
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x.detach().round())

    model, x, y = half_space(4)
    with torch.no_grad():
        y = Rounded()(x).argmax(1)
    with pytest.raises(InputError, match="differentiably"):
        attack.search(Rounded(), x, y)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CarliniWagner(threat=LINF), "norm of CarliniWagner: 'linf'"),
        (lambda: ElasticNet(threat=TWO), "norm of ElasticNet: 'l2'"),
        (lambda: CarliniWagner(threat=TWO, rounds=0), "rounds must be at least 1"),
        (lambda: ElasticNet(threat=ONE, shrinkage=-1.0), "shrinkage must be 0 or more"),
        (lambda: SaltAndPepper(threat=ONE, steps=0), "steps must be at least 1"),
        (lambda: BrendelBethge(threat=TWO, momentum=1.0), r"momentum must be in \[0, 1\)"),
        (lambda: BrendelBethge(threat=TWO, reach=0.0), "reach must be positive"),
    ],
)
def test_an_impossible_setting_is_an_error_that_names_it(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_without_foolbox_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(InputError, match=r"multirobust\[foolbox\]"):
        CarliniWagner(threat=TWO)(network().eval(), X, Y)


def test_importing_foolbox_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SaltAndPepper(threat=ONE, steps=1)(network().eval(), X, Y)
