"""An attack with a name, and a suite of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from multirobust.attacks import Attack
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Threat, Transformation

__all__ = ["MODES", "NamedAttack", "Suite"]

MODES = ("breakdown", "per_threat", "cascade")
"""Which images an attack of a suite sees; see `evaluate_suite`."""


@final
@dataclass(frozen=True)
class NamedAttack:
    """An attack of a suite.

    Args:
        name: Unique in its suite; the name of its column in the outcomes.
        attack: The attack; it has one threat.
        threat_name: Under which it is counted; empty for the name of its norm or transformation.
    """

    name: str
    attack: Attack
    threat_name: str = ""

    def __post_init__(self) -> None:
        if len(self.attack.threats) != 1:
            raise InputError(
                f"Attack {self.name!r}: an attack of a suite needs exactly one threat, so that its "
                f"images can be checked and counted under it, got {len(self.attack.threats)}."
            )
        if not self.threat_name:
            threat = self.threat
            name = threat.norm if isinstance(threat, Threat) else threat.name
            object.__setattr__(self, "threat_name", name)

    @property
    def threat(self) -> Threat | Transformation:
        """Its one threat."""
        return self.attack.threats[0]


@final
@dataclass(frozen=True)
class Suite:
    """Attacks that are run on the same images.

    Args:
        name: For the manifest and the file names.
        attacks: At least one, names all different.
        mode: Which images each sees, unless an evaluation says otherwise; one of `MODES`.
    """

    name: str
    attacks: tuple[NamedAttack, ...]
    mode: str = "breakdown"

    def __post_init__(self) -> None:
        names = [attack.name for attack in self.attacks]
        if not names or len(set(names)) < len(names):
            raise InputError(
                f"Suite {self.name!r}: needs at least one attack and different names, got {names}."
            )
        if self.mode not in MODES:
            raise lookup_error("mode", self.mode, MODES)
