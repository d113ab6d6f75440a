from __future__ import annotations

import pytest

from multirobust.attacks import PGD, attacks_from, threats_from
from multirobust.config import AttackConfig, NormAttack, ThreatConfig
from multirobust.threats import L1, L2, Linf


def test_the_defaults_are_the_published_training_attacks():
    attacks = attacks_from(AttackConfig(), threats_from(ThreatConfig()))
    assert attacks == {
        "linf": PGD(threat=Linf(8 / 255), steps=10, step_size=1 / 255),
        "l2": PGD(threat=L2(128 / 255), steps=10, step_size=30 / 255),
        "l1": PGD(threat=L1(2000 / 255, density=0.01), steps=20, step_size=1.0),
    }


def test_a_radius_replaces_that_of_the_preset_and_leaves_the_others():
    threats = threats_from(ThreatConfig(preset="tinyimagenet", l2=0.25, density=0.05))
    assert threats == {
        "linf": Linf(4 / 255),
        "l2": L2(0.25),
        "l1": L1(2000 / 255, density=0.05),
    }


@pytest.mark.parametrize("keep", ["last", "best"])
def test_each_norm_has_its_own_schedule(keep):
    config = AttackConfig(l1=NormAttack(steps=3, step_size=0.5), keep=keep)
    attacks = attacks_from(config, threats_from(ThreatConfig()))
    assert (attacks["l1"].steps, attacks["l1"].step_size) == (3, 0.5)
    assert attacks["l2"].steps == 10
    assert {attack.keep for attack in attacks.values()} == {keep}
