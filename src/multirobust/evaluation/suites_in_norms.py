"""The suites in linf, l2 and l1."""

from __future__ import annotations

from collections.abc import Mapping

from multirobust.attacks import (
    APGD,
    DLR,
    FAB,
    BrendelBethge,
    CarliniWagner,
    ElasticNet,
    IterativeAttack,
    Margin,
    Restarts,
    SaltAndPepper,
    Square,
    TargetedDLR,
    Tournament,
    attacks_from,
)
from multirobust.config import AttackConfig
from multirobust.evaluation.named import NamedAttack, Suite
from multirobust.threats import Threat

__all__ = ["autoattack", "autoattack_rand", "fast", "paper", "quick", "standard_attacks"]

STEPS = 100
QUERIES = 5000
"""As published, which counts steps after the start; ours count every question to the model."""


def quick(threats: Mapping[str, Threat], config: AttackConfig) -> Suite:
    """PGD in every norm; of several random starts, one that fools the model wins."""
    attacks = attacks_from(config, dict(threats))
    return Suite(
        "quick",
        tuple(
            NamedAttack(f"pgd_{norm}", Restarts(attack, config.restarts, Margin()))
            for norm, attack in attacks.items()
        ),
    )


def fast(threats: Mapping[str, Threat]) -> Suite:
    """A tournament of targets in every norm: the verdict of `autoattack` for far fewer passes."""
    attacks = (
        NamedAttack(f"tournament_{norm}", Tournament(threat=threat))
        for norm, threat in threats.items()
    )
    return Suite("fast", tuple(attacks))


def autoattack(threats: Mapping[str, Threat]) -> Suite:
    """APGD-CE, APGD-T, FAB-T and Square in every norm, at the published budgets.

    References: Croce and Hein, ICML 2020 and (l1) ICML 2021.
    """
    attacks = [named for threat in threats.values() for named in _standard(threat)]
    return Suite("autoattack", tuple(attacks), mode="per_threat")


def autoattack_rand(threats: Mapping[str, Threat]) -> Suite:
    """For models that answer at random: APGD-CE and APGD-DLR on the mean of 20 passes.

    References: Croce and Hein, ICML 2020 (the version "rand").
    """
    attacks = [
        NamedAttack(
            f"apgd_{name}_{threat.norm}",
            APGD(threat=threat, iterations=STEPS + 1, objective=objective, eot=20),
        )
        for threat in threats.values()
        for name, objective in (("ce", APGD.objective), ("dlr", DLR()))
    ]
    return Suite("autoattack_rand", tuple(attacks), mode="per_threat")


def paper(threats: Mapping[str, Threat], config: AttackConfig) -> Suite:
    """The paper's attacks in every norm, AutoAttack among them, at its settings.

    References: Madaan, Shin and Hwang, ICML 2021, Section 4.1.
    """
    pgd = {
        norm: NamedAttack(f"pgd_{norm}", Restarts(attack, config.restarts, Margin()))
        for norm, attack in attacks_from(config, dict(threats)).items()
    }
    linf, l2, l1 = (threats[norm] for norm in ("linf", "l2", "l1"))
    attacks = [
        pgd["linf"],
        *_standard(linf),
        NamedAttack("bb_linf", BrendelBethge(threat=linf)),
        pgd["l2"],
        *_standard(l2),
        NamedAttack("cw_l2", CarliniWagner(threat=l2)),
        NamedAttack("bb_l2", BrendelBethge(threat=l2)),
        NamedAttack("slide_l1", pgd["l1"].attack),
        NamedAttack("salt_and_pepper_l1", SaltAndPepper(threat=l1)),
        NamedAttack("ead_l1", ElasticNet(threat=l1)),
    ]
    return Suite("paper", tuple(attacks))


def standard_attacks(threat: Threat) -> dict[str, IterativeAttack]:
    """Return the four attacks of AutoAttack's version "standard" in one norm, in their order.

    FAB without the line search at its end, which AutoAttack leaves out.
    """
    l1 = threat.norm == "l1"
    steps = {"threat": threat, "iterations": _questions(threat), "wide": l1}
    return {
        "apgd_ce": APGD(**steps, restarts=5 if l1 else 1),
        "apgd_t": APGD(**steps, objective=TargetedDLR(), targets=5 if l1 else 9),
        "fab_t": FAB(threat=threat, iterations=STEPS + 1, targets=9, search=0),
        "square": Square(threat=threat, iterations=QUERIES + 1),
    }


def _standard(threat: Threat) -> list[NamedAttack]:
    return [
        NamedAttack(f"{name}_{threat.norm}", attack)
        for name, attack in standard_attacks(threat).items()
    ]


def _questions(threat: Threat) -> int:
    """Return the questions of APGD: its steps, and a start for each of its balls."""
    return STEPS + (3 if threat.norm == "l1" else 1)
