"""The rows whose attacks are chosen image by image are made of what the recipe says."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from linear_oracles import network, random_images
from multirobust.attacks import DLR, CrossEntropy, LockstepAPGD, Projected
from multirobust.attacks.choosing import (
    Cascade,
    DrawnSampler,
    EqualShares,
    ErrorShares,
    HedgeShares,
    Race,
    Router,
    ShapleyShares,
    UCBShares,
)
from multirobust.config import DefenseConfig, Recipe
from multirobust.data import Batch
from multirobust.defenses import ConsistencyTraining, MixedTraining, build
from multirobust.ranks import parts
from multirobust.threats import L1, L2, Allotment, Linf, MixedThreat
from multirobust.training.views import joined, rows


def sampler(**settings):
    return build("sat_mixed", Recipe(defense=DefenseConfig(**settings)), channels=3, seed=4).sampler


@pytest.mark.parametrize(
    ("name", "kind", "shares"),
    [
        ("uniform", DrawnSampler, EqualShares),
        ("stratified", DrawnSampler, EqualShares),
        ("error", DrawnSampler, ErrorShares),
        ("shapley", DrawnSampler, ShapleyShares),
        ("hedge", DrawnSampler, HedgeShares),
        ("ucb", DrawnSampler, UCBShares),
        ("router", Router, ShapleyShares),
        ("race", Race, ShapleyShares),
        ("cascade", Cascade, ShapleyShares),
    ],
)
def test_a_name_of_the_recipe_is_a_sampler(name, kind, shares):
    made = sampler(sampler=name)
    assert (type(made), type(made.shares)) == (kind, shares)
    assert name not in ("uniform", "stratified") or made.mixing == (
        "batch" if name == "uniform" else name
    )
    assert [attack.steps for attack in made.engine.attacks] == [10, 10, 10]
    assert made.engine.threats == (Linf(8 / 255), L2(128 / 255), L1(2000 / 255))


def test_the_settings_reach_the_sampler():
    made = sampler(sampler="error", sampler_rate="run", sampler_power=1.0, sampler_floor=0.0)
    assert (made.shares.rate, made.shares.power, made.shares.floor) == (None, 1.0, 0.0)
    made = sampler(sampler="router", sampler_quotas="none", router_explore=0.3, router_rate=0.2)
    assert (made.by_quota, made.explore, made.rate) == (False, 0.3, 0.2)
    made = sampler(sampler="race", sampler_quotas="hedge", race_laps=2, hedge_step=0.5)
    assert (made.laps, made.shares.step, made.shares.decay) == (2, 0.5, 0.01)
    made = sampler(sampler="cascade", cascade_order="sorted", shapley_every=7, shapley_images=16)
    assert (made.order, made.shares.every, made.shares.images) == ("sorted", 7, 16)
    assert sampler(sampler="ucb", ucb_width=0.7, sampler_importance=True).importance


def test_losses_norms_and_rotations_make_the_set():
    made = sampler(
        sampler_norms=("l1", "linf"),
        sampler_objectives=("cross_entropy", "dlr"),
        sampler_spatial=True,
        apgd_steps=3,
    )
    assert made.names == ["l1", "linf", "l1_dlr", "linf_dlr", "l2"]
    attacks = made.engine.attacks
    assert [type(attack) for attack in attacks] == [LockstepAPGD] * 4 + [Projected]
    assert [a.objective for a in attacks[:4]] == [CrossEntropy()] * 2 + [DLR()] * 2
    assert {a.steps for a in attacks[:4]} == {3}


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler_norms": ("linf", "linf")},
        {"sampler_objectives": ("dlr", "dlr")},
        {"sampler": "random"},
        {"sampler_floor": 1.5},
        {"sampler_rate": 0.0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_errors(settings):
    with pytest.raises(ValidationError):
        DefenseConfig(**settings)


def batch(count=12) -> Batch:
    return Batch(random_images(count, 3, 6, 6), torch.arange(count) % 4, torch.arange(count))


def plus(**settings):
    return build("plus", Recipe(defense=DefenseConfig(**settings)), channels=3, seed=4)


def test_plus_is_sat_mixed_with_choices_of_its_own():
    chosen = DefenseConfig()
    made = plus(sampler="router", apgd_steps=3, beta=2.0, ucb_width=0.7)
    assert isinstance(made, ConsistencyTraining)
    assert (made.beta, made.noise) == (chosen.plus_beta, None)
    assert isinstance(made.sampler.shares, UCBShares)
    assert made.sampler.shares.width == 0.7
    assert {attack.steps for attack in made.sampler.engine.attacks} == {chosen.plus_steps}
    made = plus(plus_sampler="race", plus_steps=3, plus_beta=0.0)
    assert isinstance(made, MixedTraining)
    assert isinstance(made.sampler, Race)
    assert {attack.steps for attack in made.sampler.engine.attacks} == {3}


def test_the_preset_plus_trains_plus_where_nothing_is_named():
    assert Recipe(preset="plus").defenses == ("plus",)
    assert Recipe(preset="plus", defenses=("sat",)).defenses == ("sat",)


def test_weights_give_each_attack_the_same_say_in_the_loss():
    """Sizes 2, 8 and 2 of 12 at p = (1/6, 2/3, 1/6): the weighted mean is that of three means."""
    made = sampler(sampler="ucb", sampler_importance=True, sampler_floor=0.5, apgd_steps=2)
    made.shares.pulls.fill_(1.0)
    made.shares.reward.copy_(torch.tensor([0.0, 1.0, 0.0]))
    defense, data, model = MixedTraining(made), batch(), network().eval()
    views = defense.craft(model, data)
    assert views.allotment.sizes == (2, 8, 2)
    losses = CrossEntropy().of(model(views.x_adv), data.y, data.y)
    means = [losses[views.allotment.index == k].mean() for k in range(3)]
    torch.testing.assert_close(defense.loss(model, data, views).total, torch.stack(means).mean())


def test_the_log_tells_the_share_of_each_attack():
    defense, data, model = MixedTraining(sampler(apgd_steps=2)), batch(), network().eval()
    terms = defense.loss(model, data, defense.craft(model, data)).terms
    shares = [terms[f"share_{name}"].item() for name in ("linf", "l2", "l1")]
    assert shares == pytest.approx([1 / 3] * 3)


def test_gaussian_noise_is_brought_into_the_ball_of_each_image():
    made = sampler(sampler="router", apgd_steps=2)
    defense, data, model = ConsistencyTraining(made), batch(), network().eval()
    views = defense.craft(model, data, generator=torch.Generator().manual_seed(2))
    assert isinstance(views.threat, MixedThreat)
    share = views.threat.distance(views.x_aug, data.x) / views.threat.radius
    assert share.tolist() == pytest.approx([1] * 12, rel=1e-4)  # unit noise leaves every ball
    assert defense.loss(model, data, views).total.isfinite()
    assert made.draws.sum() == 12


def test_views_of_mixed_batches_are_put_together_and_taken_apart():
    made = sampler(apgd_steps=2)
    defense, model, data = ConsistencyTraining(made), network().eval(), batch()
    views = [defense.craft(model, data.take(part)) for part in parts(12, rounds=3)]
    whole = joined(views)
    groups = whole.threat.allotment.groups
    assert groups == tuple(g for view in views for g in view.threat.allotment.groups)
    assert whole.chosen.allotment == whole.threat.allotment == Allotment.of(groups, 3)
    assert torch.equal(whole.chosen.weights, torch.ones(12))
    second = rows(whole, 4, 8, 12)
    assert second.chosen.allotment == views[1].chosen.allotment
    assert torch.equal(second.x_aug, views[1].x_aug)
    assert second.threat == views[1].threat


@pytest.mark.parametrize("noise", ["learned", "gaussian", "uniform_in_ball"])
@pytest.mark.parametrize("noise_map", ["project", "smooth", "straight_through"])
def test_augmented_images_lie_in_the_ball_of_their_own_threat(noise, noise_map):
    config = DefenseConfig(noise=noise, noise_map=noise_map, apgd_steps=2)
    defense = build("mng_ac_mixed", Recipe(defense=config), channels=3, seed=4)
    model, x = network().train(), random_images(12, 3, 6, 6, seed=2)
    batch = Batch(x, torch.arange(12) % 4, torch.arange(12))
    crafted = defense.craft(model, batch, generator=torch.Generator().manual_seed(1))
    views = defense.adapt(model, batch, crafted, lr=0.1, generator=torch.Generator())
    assert isinstance(views.threat, MixedThreat)
    assert len({*views.threat.allotment.groups}) == 3
    reach = views.threat.distance(views.x_aug, x).double() / views.threat.radius
    assert (reach <= 1 + 1e-6).all()
    assert (reach > 0).all()
    assert torch.equal(views.x_aug, views.x_aug.clamp(0, 1))


def test_equal_passes_give_the_shared_attack_the_steps_that_the_third_view_leaves():
    config = DefenseConfig(noise="none", equal_passes=True, apgd_steps=10)
    defense = build("mng_ac_mixed", Recipe(defense=config), channels=3, seed=4)
    assert [attack.steps for attack in defense.sampler.engine.attacks] == [14, 14, 14]
