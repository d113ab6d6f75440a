"""Suites: named lists of attacks that measure robustness together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from multirobust.attacks import Attack, Margin, Restarts, attacks_from
from multirobust.config import AttackConfig
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Threat

__all__ = ["SUITES", "NamedAttack", "Suite", "build_suite"]


@final
@dataclass(frozen=True)
class NamedAttack:
    """An attack of a suite.

    Args:
        name: Unique in its suite; the name of its column in the outcomes.
        attack: The attack; it has one threat.
    """

    name: str
    attack: Attack

    def __post_init__(self) -> None:
        if len(self.attack.threats) != 1:
            raise InputError(
                f"Attack {self.name!r}: an attack of a suite needs exactly one threat, so that its "
                f"images can be checked and counted under it, got {len(self.attack.threats)}."
            )

    @property
    def threat(self) -> Threat:
        """Its one threat."""
        return self.attack.threats[0]


@final
@dataclass(frozen=True)
class Suite:
    """Attacks that are run on the same images.

    Args:
        name: For the manifest and the file names.
        attacks: At least one, names all different.
    """

    name: str
    attacks: tuple[NamedAttack, ...]

    def __post_init__(self) -> None:
        names = [attack.name for attack in self.attacks]
        if not names or len(set(names)) < len(names):
            raise InputError(
                f"Suite {self.name!r}: needs at least one attack and different names, got {names}."
            )


def _quick(threats: Mapping[str, Threat], config: AttackConfig) -> Suite:
    """PGD in every norm; of several random starts, one that fools the model wins."""
    attacks = attacks_from(config, dict(threats))
    return Suite(
        "quick",
        tuple(
            NamedAttack(f"pgd_{norm}", Restarts(attack, config.restarts, Margin()))
            for norm, attack in attacks.items()
        ),
    )


SUITES: dict[str, Callable[[Mapping[str, Threat], AttackConfig], Suite]] = {"quick": _quick}


def build_suite(name: str, threats: Mapping[str, Threat], config: AttackConfig) -> Suite:
    """Return a suite by its name.

    Args:
        name: A name of `multirobust list suites`.
        threats: The balls, keyed "linf", "l2" and "l1".
        config: Steps, step sizes and restarts of PGD.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in SUITES:
        raise lookup_error("suite", name, SUITES)
    return SUITES[name](threats, config)
