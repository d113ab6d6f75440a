"""Threats and PGD attacks as a recipe describes them."""

from __future__ import annotations

from multirobust.attacks.pgd import PGD
from multirobust.config import AttackConfig, NormAttack, ThreatConfig
from multirobust.threats import L1, L2, Linf, Threat, threats_for

__all__ = ["attacks_from", "threats_from"]


def threats_from(config: ThreatConfig) -> dict[str, Threat]:
    """Return the three balls of a configuration, keyed "linf", "l2" and "l1"."""
    preset = threats_for(config.preset)
    return {
        "linf": Linf(config.linf or preset["linf"].radius),
        "l2": L2(config.l2 or preset["l2"].radius),
        "l1": L1(config.l1 or preset["l1"].radius, density=config.density),
    }


def attacks_from(config: AttackConfig, threats: dict[str, Threat]) -> dict[str, PGD]:
    """Return PGD in each threat with the configured steps, without its restarts."""
    schedules: dict[str, NormAttack] = {norm: getattr(config, norm) for norm in threats}
    return {
        norm: PGD(
            threat=threat,
            steps=schedules[norm].steps,
            step_size=schedules[norm].step_size,
            keep=config.keep,
        )
        for norm, threat in threats.items()
    }
