from __future__ import annotations

import pytest

from multirobust import catalog
from multirobust.attacks import PGD, Margin, Restarts, WorstCase
from multirobust.config import AttackConfig, EvaluationConfig, NormAttack
from multirobust.errors import InputError
from multirobust.evaluation import SUITES, NamedAttack, Suite, build_suite
from multirobust.threats import L2, Linf, threats_for

THREATS = threats_for("digits")
ATTACK = AttackConfig(
    linf=NormAttack(steps=3, step_size=0.1),
    l2=NormAttack(steps=4, step_size=0.2),
    l1=NormAttack(steps=5, step_size=0.3),
    restarts=2,
    keep="best",
)
CONFIG = EvaluationConfig(attack=ATTACK)


def pgd(threat) -> PGD:
    return PGD(threat=threat, steps=1, step_size=0.1)


def test_the_suites_are_those_of_the_catalog():
    assert set(SUITES) == set(catalog.SUITES)


def test_quick_is_restarted_pgd_in_every_norm_chosen_by_whether_it_fools():
    suite = build_suite("quick", THREATS, CONFIG)
    assert suite.name == "quick"
    assert [named.name for named in suite.attacks] == ["pgd_linf", "pgd_l2", "pgd_l1"]
    for named in suite.attacks:
        norm = named.threat_name
        schedule = getattr(ATTACK, norm)
        expected = PGD(
            threat=THREATS[norm], steps=schedule.steps, step_size=schedule.step_size, keep="best"
        )
        assert named.attack == Restarts(expected, 2, Margin())


def test_an_unknown_suite_is_told_with_those_that_are():
    with pytest.raises(InputError, match=r"Unknown suite: 'quik'\. Did you mean 'quick'\?"):
        build_suite("quik", THREATS, CONFIG)


def test_an_attack_of_several_threats_has_no_ball_to_be_counted_under():
    attack = WorstCase((pgd(Linf(0.1)), pgd(L2(1.0))))
    with pytest.raises(InputError, match=r"'both': an attack of a suite needs exactly one threat"):
        NamedAttack("both", attack)


def test_a_suite_needs_attacks_of_different_names():
    named = NamedAttack("a", pgd(Linf(0.1)))
    for attacks in ((), (named, named)):
        with pytest.raises(InputError, match=r"Suite 's': needs at least one attack"):
            Suite("s", attacks)
