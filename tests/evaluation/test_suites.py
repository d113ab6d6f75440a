from __future__ import annotations

import numpy as np
import pytest
import torch

from multirobust import catalog
from multirobust.attacks import (
    APGD,
    DLR,
    FAB,
    PGD,
    CrossEntropy,
    Margin,
    Restarts,
    Square,
    TargetedDLR,
    Tournament,
    WorstCase,
)
from multirobust.attacks.corruptions import CORRUPTIONS
from multirobust.config import AttackConfig, EvaluationConfig, NormAttack
from multirobust.data import Split
from multirobust.errors import DataError, InputError
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


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_names_its_attacks_by_what_they_are_and_each_threat_has_one_radius(name):
    suite = build_suite(name, THREATS, CONFIG)
    assert suite.name == name
    radii: dict[str, set[float]] = {}
    for named in suite.attacks:
        radii.setdefault(named.threat_name, set()).add(named.threat.radius)
    assert all(len(values) == 1 for values in radii.values())


def test_autoattack_is_the_published_four_with_the_published_budgets():
    suite = build_suite("autoattack", THREATS, CONFIG)
    assert suite.mode == "per_threat"
    for norm, threat in THREATS.items():
        four = [named for named in suite.attacks if named.threat_name == norm]
        names = [f"{kind}_{norm}" for kind in ("apgd_ce", "apgd_t", "fab_t", "square")]
        assert [named.name for named in four] == names
        ce, targeted, fab, square = (named.attack for named in four)
        one = norm == "l1"
        steps = {"threat": threat, "iterations": 103 if one else 101, "wide": one}
        assert ce == APGD(**steps, restarts=5 if one else 1)
        assert targeted == APGD(**steps, objective=TargetedDLR(), targets=5 if one else 9)
        assert fab == FAB(threat=threat, iterations=101, targets=9, search=0)
        assert square == Square(threat=threat, iterations=5001)


def test_the_suite_for_random_models_asks_twenty_times():
    suite = build_suite("autoattack_rand", THREATS, CONFIG)
    expected = [
        APGD(threat=threat, iterations=101, objective=objective, eot=20)
        for threat in THREATS.values()
        for objective in (CrossEntropy(), DLR())
    ]
    assert [named.attack for named in suite.attacks] == expected


def test_fast_is_one_tournament_a_norm():
    suite = build_suite("fast", THREATS, CONFIG)
    expected = [Tournament(threat=threat) for threat in THREATS.values()]
    assert [named.attack for named in suite.attacks] == expected


def test_the_paper_suite_names_every_attack_of_the_paper():
    names = [named.name for named in build_suite("paper", THREATS, CONFIG).attacks]
    by_norm = {norm: [n for n in names if n.endswith(f"_{norm}")] for norm in THREATS}
    assert {"pgd_linf", "bb_linf", "apgd_t_linf", "square_linf"} <= set(by_norm["linf"])
    assert {"pgd_l2", "bb_l2", "cw_l2", "apgd_t_l2", "square_l2"} <= set(by_norm["l2"])
    assert by_norm["l1"] == ["slide_l1", "salt_and_pepper_l1", "ead_l1"]
    assert sum(map(len, by_norm.values())) == len(names)


def test_severities_choose_levels_and_one_that_is_not_published_is_told():
    suite = build_suite("corruptions", THREATS, EvaluationConfig(severities=(2, 5)))
    assert len(suite.attacks) == 38
    assert {named.threat_name.split("@")[1] for named in suite.attacks} == {"2", "5"}
    with pytest.raises(InputError, match="severities: those of corruptions go from 1 to 5, got 6"):
        build_suite("corruptions", THREATS, EvaluationConfig(severities=(6,)))


def test_a_suite_of_an_unknown_mode_is_told():
    with pytest.raises(InputError, match="Unknown mode: 'all'"):
        Suite("s", (NamedAttack("a", pgd(Linf(0.1))),), mode="all")


def test_corruptions_are_read_from_published_files_that_belong_to_the_images(tmp_path):
    split = Split(torch.zeros((4, 3, 32, 32), dtype=torch.uint8), torch.tensor([1, 0, 2, 1]))
    np.save(tmp_path / "labels.npy", np.tile(split.labels.numpy(), 5))
    for name in CORRUPTIONS:
        images = np.full((20, 32, 32, 3), len(name), dtype=np.uint8)
        np.save(tmp_path / f"{name}.npy", images)
    config = EvaluationConfig(severities=(3,), corruptions=str(tmp_path))
    suite = build_suite("corruptions", THREATS, config, split.first(3))
    fog = next(named for named in suite.attacks if named.name == "fog_3")
    assert fog.threat_name == "fog@3"
    assert fog.attack.images.shape == (3, 3, 32, 32)
    assert (fog.attack.images == len("fog")).all()
    with pytest.raises(InputError, match="stored corruptions belong to images, got none"):
        build_suite("corruptions", THREATS, config)
    other = Split(split.images, split.labels + 1)
    with pytest.raises(DataError, match="labels"):
        build_suite("corruptions", THREATS, config, other)
