"""The rows of the table are made of what their sources publish, and of what a recipe says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from multirobust.attacks import PGD, ErrorSampler, LockstepAPGD, Projected, SpatialRandom
from multirobust.config import DefenseConfig, Recipe, ThreatConfig, TrainingConfig
from multirobust.defenses import build
from multirobust.threats import L1, L2, Linf


def made(name: str, **settings):
    training = TrainingConfig(momentum=0.8, weight_decay=1e-3)
    recipe = Recipe(defense=DefenseConfig(**settings), training=training)
    return build(name, recipe, channels=3, seed=4)


def test_e_at_draws_linf_and_l1_with_ten_steps_of_auto_pgd():
    sampler = made("e_at").sampler
    assert isinstance(sampler, ErrorSampler)
    assert [type(attack) for attack in sampler.attacks] == [LockstepAPGD] * 2
    assert [type(attack.threat) for attack in sampler.attacks] == [Linf, L1]
    assert [attack.steps for attack in sampler.attacks] == [10, 10]
    assert (sampler.rate, sampler.power, sampler.floor) == (None, 1.0, 0.0)


def test_e_at_takes_norms_rule_and_attack_of_the_recipe():
    sampler = made(
        "e_at",
        e_at_norms=("linf", "l2", "l1"),
        e_at_rate=0.05,
        e_at_power=2.0,
        e_at_floor=0.15,
        extreme_attack="pgd",
    ).sampler
    assert [type(attack) for attack in sampler.attacks] == [PGD] * 3
    assert [attack.steps for attack in sampler.attacks] == [10, 10, 20]
    assert (sampler.rate, sampler.power, sampler.floor) == (0.05, 2.0, 0.15)


def test_ramp_has_the_published_weights_and_the_optimizer_of_the_training():
    defense = made("ramp")
    assert (defense.pairing, defense.projection) == (5.0, 0.5)
    assert [type(attack.threat) for attack in defense.attacks] == [Linf, L1]
    assert (defense._natural.momentum, defense._natural.weight_decay) == (0.8, 1e-3)


def test_ramp_takes_its_norms_of_the_recipe():
    attacks = made("ramp", ramp_norms=("l1", "l2"), apgd_steps=3).attacks
    assert [(type(attack.threat), attack.steps) for attack in attacks] == [(L1, 3), (L2, 3)]


def test_the_spatial_set_is_the_three_norms_and_the_worst_of_ten_rotations_on_l2():
    attacks = made("mng_ac_spatial").sampler.attacks
    assert [attack.threats[0].norm for attack in attacks] == ["linf", "l2", "l1", "l2"]
    assert attacks[3] == Projected(SpatialRandom(radius=30.0, draws=10), attacks[1].threat)


def test_mng_ac_with_self_training_is_mng_ac_on_other_data():
    assert str(made("mng_ac").state_dict()) == str(made("mng_ac_rst").state_dict())


def test_robust_self_training_is_trades_with_the_published_steps():
    trades, rst = made("trades"), made("rst_linf")
    assert (trades.attack.step_size, rst.attack.step_size) == (1 / 255, pytest.approx(0.007))
    assert (rst.attack.steps, rst.attack.threat, rst.beta) == (10, Linf(8 / 255), 6.0)
    assert replace(rst.attack, step_size=1 / 255) == trades.attack


def test_the_published_step_is_in_proportion_to_the_radius_and_gives_way_to_the_recipe():
    recipe = Recipe(threats=ThreatConfig(preset="cifar10", linf=16 / 255))
    attack = build("rst_linf", recipe, channels=3).attack
    assert attack.step_size == pytest.approx(0.014)
    assert made("rst_linf", rst_step_size=0.002).attack.step_size == 0.002


@pytest.mark.parametrize(
    "settings",
    [{"e_at_norms": ("linf", "linf")}, {"ramp_norms": ("l1", "l1")}],
    ids=["e_at", "ramp"],
)
def test_a_norm_named_twice_is_an_error(settings):
    with pytest.raises(ValidationError, match="each norm must be named once"):
        DefenseConfig(**settings)


@pytest.mark.parametrize("norms", [("linf",), ("linf", "l2", "l1")])
def test_ramp_pairs_two_norms(norms):
    with pytest.raises(ValidationError, match="ramp_norms"):
        DefenseConfig(ramp_norms=norms)
