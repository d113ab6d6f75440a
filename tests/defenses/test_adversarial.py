from __future__ import annotations

import pytest
import torch

from linear_oracles import network, random_images
from multirobust.attacks import PGD, Always, KLDivergence, UniformSampler
from multirobust.data import Batch
from multirobust.defenses import TRADES, AdversarialTraining, AverageTraining, Standard
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf

ATTACKS = tuple(
    PGD(threat=t, steps=2, step_size=t.radius / 2) for t in (Linf(0.1), L2(0.6), L1(3.0))
)
BATCH = Batch(random_images(8, 3, 6, 6, seed=1), torch.arange(8) % 4, torch.arange(8))
OTHER = random_images(8, 3, 6, 6, seed=2)


def probabilities(model, x):
    with torch.no_grad():
        return model(x).double().softmax(1)


def cross_entropy(model, x):
    return -probabilities(model, x)[torch.arange(8), BATCH.y].log().mean().item()


def test_standard_is_the_cross_entropy_on_clean_images():
    model = network().eval()
    defense = Standard()
    assert defense.craft(model, BATCH) is None
    loss = defense.loss(model, BATCH, None)
    assert loss.total.item() == pytest.approx(cross_entropy(model, BATCH.x), rel=1e-5)


def test_adversarial_training_sees_adversarial_images_only():
    model = network().eval()
    loss = AdversarialTraining(ATTACKS[0]).loss(model, BATCH, OTHER)
    assert loss.total.item() == pytest.approx(cross_entropy(model, OTHER), rel=1e-5)


def test_adversarial_training_crafts_with_the_attack_that_its_sampler_draws():
    model = network().eval()
    defense, twin = (AdversarialTraining(UniformSampler(ATTACKS, seed=3)) for _ in range(2))
    for seed in range(4):
        drawn = twin.sampler.draw()
        generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
        expected = drawn(model, BATCH.x, BATCH.y, generator=generators[0])
        assert torch.equal(defense.craft(model, BATCH, generator=generators[1]), expected)


def test_one_attack_is_a_sampler_of_one():
    assert isinstance(AdversarialTraining(ATTACKS[0]).sampler, Always)


def test_average_training_is_the_mean_over_the_attacks():
    model = network().eval()
    defense = AverageTraining(ATTACKS)
    views = (BATCH.x, OTHER, 1 - OTHER)
    expected = sum(cross_entropy(model, view) for view in views) / 3
    assert defense.loss(model, BATCH, views).total.item() == pytest.approx(expected, rel=1e-5)


def test_average_training_attacks_with_each_of_its_attacks():
    model = network().eval()
    views = AverageTraining(ATTACKS).craft(model, BATCH)
    expected = [attack(model, BATCH.x, BATCH.y) for attack in ATTACKS]
    assert all(torch.equal(one, other) for one, other in zip(views, expected, strict=True))


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_is_its_formula(beta):
    model = network().eval()
    clean, adversarial = probabilities(model, BATCH.x), probabilities(model, OTHER)
    divergence = (clean * (clean / adversarial).log()).sum(1).mean().item()
    expected = cross_entropy(model, BATCH.x) + beta * divergence
    loss = TRADES(ATTACKS[0], beta=beta).loss(model, BATCH, OTHER)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["divergence"].item() == pytest.approx(divergence, rel=1e-4)


def test_the_attack_of_trades_raises_the_divergence_and_ignores_the_labels():
    model = network().eval()
    attack = PGD(threat=Linf(0.1), steps=5, step_size=0.03, objective=KLDivergence())
    defense = TRADES(attack)
    views = defense.craft(model, BATCH)
    shuffled = Batch(BATCH.x, BATCH.y.flip(0), BATCH.index)
    assert torch.equal(defense.craft(model, shuffled), views)
    random = attack.threat.sample(BATCH.x)
    divergences = [defense.loss(model, BATCH, v).terms["divergence"] for v in (views, random)]
    assert divergences[0] > 2 * divergences[1]


def test_average_training_needs_an_attack():
    with pytest.raises(InputError, match="AverageTraining: attacks must name at least one"):
        AverageTraining(())
