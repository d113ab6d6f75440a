"""What stands in for the learned noise, and how the passes of the variants are made equal."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from linear_oracles import network, random_images
from multirobust.attacks import PassMeter, UniformSampler, attacking
from multirobust.config import AttackConfig, DefenseConfig, NormAttack, Recipe, ThreatConfig
from multirobust.data import Batch
from multirobust.defenses import (
    MNGAC,
    ConsistencyTraining,
    ConsistencyViews,
    GaussianNoise,
    UniformNoise,
    build,
    consistency_loss,
)
from multirobust.threats import L1, L2, Linf, SmoothMap, StraightThrough
from multirobust.training.views import joined, rows

THREATS = [Linf(0.1), L2(0.6), L1(1.5)]
every_threat = pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
VARIANTS = ("learned", "gaussian", "uniform_in_ball", "none")


def recipe(restarts: int = 1, steps: int = 2, **settings) -> Recipe:
    return Recipe(
        threats=ThreatConfig(preset="digits", density=0.05),
        attack=AttackConfig(
            linf=NormAttack(steps=steps, step_size=0.05),
            l2=NormAttack(steps=steps, step_size=0.3),
            l1=NormAttack(steps=steps, step_size=1.0),
            restarts=restarts,
        ),
        defense=DefenseConfig(**settings),
    )


def made(restarts: int = 1, **settings):
    return build("mng_ac", recipe(restarts, **settings), channels=1, seed=0)


def batch() -> Batch:
    return Batch(random_images(8, 1, 6, 6), torch.arange(8) % 4, torch.arange(8))


def step(defense, model, data):
    generator = torch.Generator().manual_seed(3)
    with attacking(model, "batch"):
        views = defense.craft(model, data, generator=generator)
    views = defense.adapt(model, data, views, lr=0.05, generator=generator)
    loss = defense.loss(model, data, views)
    loss.total.backward()
    return views, loss


def passes(defense, steps: int = 2) -> float:
    """Passes of a step, forward and backward, in batches: the mean over some steps."""
    model, data = network(1).train(), batch()
    with PassMeter(model) as meter:
        for _ in range(steps):
            step(defense, model, data)
    return (meter.forwards + meter.backwards) / len(data) / steps


def test_gaussian_is_sat_with_consistency_bit_for_bit():
    one = made(noise="gaussian", beta=3.0)
    other = build("sat_ac", recipe(beta=3.0), channels=1, seed=0)
    results = [step(defense, network(1).train(), batch()) for defense in (one, other)]
    assert torch.equal(results[0][0].x_aug, results[1][0].x_aug)
    assert torch.equal(results[0][1].total, results[1][1].total)


@every_threat
def test_uniform_is_a_sample_of_the_threat(threat):
    x = batch().x
    expected = threat.sample(x, torch.Generator().manual_seed(5))
    found = UniformNoise()(threat, x, torch.Generator().manual_seed(5))
    assert torch.equal(found, expected)


@every_threat
def test_gaussian_noise_goes_through_the_map(threat):
    x = batch().x
    z = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(5))
    found = GaussianNoise(SmoothMap())(threat, x, torch.Generator().manual_seed(5))
    assert torch.equal(found, SmoothMap()(threat, z, x))


@pytest.mark.parametrize("forward", ["separate", "concatenated"])
def test_without_a_third_view_the_divergence_is_that_of_two(forward):
    model, data = network(1).double().eval(), batch()
    x_adv = random_images(8, 1, 6, 6, seed=7).double()
    data = Batch(data.x.double(), data.y, data.index)
    views = ConsistencyViews(x_adv, None, THREATS[0])
    loss = consistency_loss(model, data, views, beta=2.0, forward=forward)
    p = torch.stack([model(x).softmax(1) for x in (data.x, x_adv)])
    divergence = (p * (p / p.mean(0)).log()).sum(2).sum(0).mean() / 2
    classification = -p[1][torch.arange(8), data.y].log().mean()
    assert loss.terms["consistency"].item() == pytest.approx(divergence.item(), rel=1e-9)
    assert loss.total.item() == pytest.approx((classification + 2 * divergence).item(), rel=1e-9)


@pytest.mark.parametrize("noise", VARIANTS)
def test_every_variant_takes_a_finite_step_within_its_threat(noise):
    defense, data = made(noise=noise), batch()
    assert isinstance(defense, MNGAC if noise == "learned" else ConsistencyTraining)
    model = network(1).train()
    views, loss = step(defense, model, data)
    assert math.isfinite(loss.total.item())
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (views.x_aug is None) == (noise == "none")
    if views.x_aug is not None:
        assert not torch.equal(views.x_aug, data.x)
        shares = views.threat.distance(views.x_aug, data.x) / views.threat.radius
        assert (shares <= 1 + 1e-6).all()


def test_two_views_of_a_batch_in_rounds_are_put_together_and_taken_apart():
    x = batch().x
    views = [ConsistencyViews(part, None, THREATS[0]) for part in x.chunk(2)]
    whole = joined(views)
    assert torch.equal(whole.x_adv, x)
    assert whole.x_aug is None
    part = rows(whole, 2, 5, 8)
    assert torch.equal(part.x_adv, x[2:5])
    assert part.x_aug is None


def test_a_resumed_training_without_learned_noise_draws_what_it_would_have_drawn():
    first = made(noise="uniform_in_ball")
    step(first, network(1).train(), batch())
    resumed = made(noise="uniform_in_ball")
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(4):
        losses = [step(d, network(1).train(), batch())[1].total for d in (first, resumed)]
        assert torch.equal(*losses)


COSTS = {"learned": 5 + 6, "gaussian": 3 + 3, "uniform_in_ball": 3 + 3, "none": 2 + 2}
"""Passes beside those of the attack."""


@pytest.mark.parametrize("noise", VARIANTS)
def test_each_variant_costs_what_the_documentation_tells(noise):
    assert passes(made(noise=noise)) == 2 * 2 + COSTS[noise]


@pytest.mark.parametrize(
    "settings",
    [{"noise": noise} for noise in VARIANTS]
    + [{"meta_every": 0}, {"meta_every": 2}, {"meta_share": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("restarts", [1, 2])
def test_with_equal_passes_none_has_fewer_than_mng_ac_nor_a_whole_attack_step_more(
    settings, restarts
):
    published = passes(made(restarts))
    found = passes(made(restarts, equal_passes=True, **settings))
    assert published <= found < published + 2 * restarts


def test_with_equal_passes_mng_ac_itself_is_as_it_was():
    attacks = [made(equal_passes=equal).sampler.attacks for equal in (False, True)]
    assert attacks[0] == attacks[1]


def test_the_attack_gets_the_steps_that_the_third_view_leaves():
    steps = {
        noise: made(noise=noise, equal_passes=True).sampler.attacks[0].steps for noise in VARIANTS
    }
    assert steps == {"learned": 2, "gaussian": 5, "uniform_in_ball": 5, "none": 6}


def test_the_spatial_attack_stays_and_the_others_get_longer():
    spatial = build("mng_ac_spatial", recipe(noise="none", equal_passes=True), channels=1)
    assert [attack.steps for attack in spatial.sampler.attacks[:3]] == [6, 6, 6]
    assert spatial.sampler.attacks[3].threats[0].norm == "l2"


def test_the_recipe_decides_generator_map_and_step():
    defense = made(
        generator_width=7,
        generator_depth=2,
        generator_rate=4.0,
        noise_map="straight_through",
        meta_every=0,
        meta_report=True,
    )
    assert defense.noise.layers[0].out_channels == 7
    assert defense.noise.margin == 2
    assert (defense.rate, defense.meta_every, defense.meta_report) == (4.0, 0, True)
    assert defense.ball_map == StraightThrough()
    gaussian = made(noise="gaussian", noise_map="smooth")
    assert gaussian.noise == GaussianNoise(SmoothMap())


def test_the_defaults_are_the_published_generator():
    assert sum(p.numel() for p in made(conditioning="noise").noise.parameters()) == 4_101


@pytest.mark.parametrize(
    "settings",
    [
        {"noise": "laplace"},
        {"noise_map": "hard"},
        {"generator_width": 0},
        {"generator_rate": -1.0},
        {"meta_every": -1},
        {"meta_every": True},
        {"equal_passes": 1},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        DefenseConfig(**settings)


def test_noise_without_a_map_is_projected():
    x, threat = batch().x, THREATS[0]
    sampler = UniformSampler(made().sampler.attacks)
    assert ConsistencyTraining(sampler).noise == GaussianNoise()
    found = GaussianNoise()(threat, x, torch.Generator().manual_seed(5))
    z = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(5))
    assert torch.equal(found, threat.project(x + z, x))
