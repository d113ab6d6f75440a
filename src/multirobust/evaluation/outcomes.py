"""What happened to every image under every attack, and the accuracies that follow from it.

Only facts are stored. Clean accuracy, the worst case per threat, the union and the average are
views, so that none can contradict another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, final

import numpy as np

from multirobust.errors import InputError, lookup_error
from multirobust.evaluation.intervals import Estimate
from multirobust.evaluation.state import State, check_parts

__all__ = ["AttackColumn", "Outcomes"]


@final
@dataclass(frozen=True, eq=False)
class AttackColumn:
    """One attack on all images.

    Args:
        name: Short name, unique among the columns.
        threat: Name of the threat it searched: "linf", "l1", "l2", ...
        radius: Radius of the threat, on the [0, 1] pixel scale.
        states: `State` codes, uint8, shape (n,).
        distances: Distance of the adversarial image in the threat's norm, float32, shape (n,);
            0 where there is none.
        seconds: Wall time of the attack on all images.
        forwards: Forward passes per image.
        backwards: Backward passes per image.
        settings: The attack in full, its repr; may be empty.

    Raises:
        InputError: If a code is unknown, or shapes or numbers make no sense.
    """

    name: str
    threat: str
    radius: float
    states: np.ndarray
    distances: np.ndarray
    seconds: float = 0.0
    forwards: float = 0.0
    backwards: float = 0.0
    settings: str = ""

    def __post_init__(self) -> None:
        where = f"AttackColumn {self.name!r}"
        _freeze(self, "states", np.uint8, where)
        _freeze(self, "distances", np.float32, where)
        if not (self.name and self.threat):
            raise InputError(f"{where}: name and threat must not be empty, got {self.threat!r}.")
        if self.states.size and self.states.max() > max(State):
            raise InputError(
                f"{where}: states must be 0 (survived), 1 (broken), 2 (error) or 3 (skipped), got "
                f"{int(self.states.max())}; use the State codes."
            )
        if self.states.shape != self.distances.shape:
            raise InputError(
                f"{where}: states and distances must have one entry per image each, got shapes "
                f"{self.states.shape} and {self.distances.shape}."
            )
        numbers = (self.radius, self.seconds, self.forwards, self.backwards)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise InputError(
                f"{where}: radius, seconds, forwards and backwards must be finite and not "
                f"negative, got {numbers}."
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttackColumn) and _same(self, other)

    __hash__ = None  # type: ignore[assignment]


@final
@dataclass(frozen=True, eq=False)
class Outcomes:
    """Per-image facts of one evaluation: which image survived which attack.

    An image that the model gets wrong without any attack counts as broken by every attack (with
    distance 0), and one whose clean prediction is an error survives none, so no robust accuracy
    exceeds the clean one.

    Args:
        index: Position of each image in its split, int64, shape (n,), no duplicates.
        labels: True classes, int64, shape (n,).
        predictions: Classes predicted for the clean images, int64, shape (n,); -1 is an error.
        columns: One entry per attack.
        manifest: What produced them: recipe, seeds, versions, commit, device, time. Plain
            JSON values.

    Raises:
        InputError: If the parts do not fit together; the message names the part.
    """

    index: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    columns: tuple[AttackColumn, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("index", "labels", "predictions"):
            _freeze(self, name, np.int64, "Outcomes")
        object.__setattr__(self, "columns", tuple(self.columns))
        if not isinstance(self.manifest, dict):
            raise InputError(f"Outcomes: manifest must be a dict, got {self.manifest!r}.")
        check_parts(self)

    def __len__(self) -> int:
        return len(self.index)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcomes) and _same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Show the accuracies in percent, one a line."""
        lines = [f"{len(self)} images", f"clean  {self.clean()}"]
        lines += [f"{threat:<6} {self.worst(threat)}" for threat in self.threats]
        if self.columns:
            lines += [f"union  {self.union()}", f"avg    {self.average()}"]
        lines += [f"audit: {found['code']}" for found in self.manifest.get("audit", [])]
        return "\n".join(lines)

    @property
    def threats(self) -> tuple[str, ...]:
        """Names of the threats that were attacked, in order of their first attack."""
        return tuple(dict.fromkeys(column.threat for column in self.columns))

    def clean(self) -> Estimate:
        """Accuracy without any attack."""
        unknown = self.predictions < 0
        correct = self.predictions == self.labels
        return self._estimate(correct, correct | unknown)

    def attack(self, name: str) -> Estimate:
        """Accuracy under one attack.

        Raises:
            InputError: If no attack has this name.
        """
        chosen = [column for column in self.columns if column.name == name]
        if not chosen:
            raise lookup_error("attack", name, [column.name for column in self.columns])
        return self._estimate(*self._survival(lambda column: column.name == name))

    def worst(self, threat: str) -> Estimate:
        """Accuracy under the worst case of a threat: images that survive all of its attacks."""
        return self.union([threat])

    def union(self, threats: Iterable[str] | None = None) -> Estimate:
        """Accuracy under the union of threats: images that survive every attack of all of them.

        An image that some attack broke is broken, whatever errors others ended in; it survives
        only if every attack left it standing; anything else is unknown and widens the range. So
        does an image that was not attacked under these threats since another one broke it.

        Args:
            threats: Names of threats; None means all that were attacked.

        Raises:
            InputError: If a threat is unknown or there is none.
        """
        return self._estimate(*self.survival(threats))

    def survival(self, threats: Iterable[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return two masks of the images, bool, shape (n,): surely, and possibly, robust.

        Args:
            threats: Names of threats whose union counts; None means all that were attacked.

        Raises:
            InputError: If a threat is unknown or there is none.
        """
        names = self._chosen(threats)
        return self._survival(lambda column: column.threat in names)

    def average(self, threats: Iterable[str] | None = None) -> Estimate:
        """Mean over threats of the accuracy under each one's worst case (the paper's Acc_avg).

        Its interval applies Wilson's formula to this mean with n images. An image contributes the
        fraction of the threats that it survives, a number in [0, 1] whose variance is at most
        that of a yes or no with the same mean, so the interval is conservative (too wide).

        Args:
            threats: Names of threats; None means all that were attacked. Repeats count once.

        Raises:
            InputError: If a threat is unknown or there is none.
        """
        names = self._chosen(threats)
        masks = [self._survival(lambda column, name=name: column.threat == name) for name in names]
        surely = np.stack([surely for surely, _ in masks])
        maybe = np.stack([maybe for _, maybe in masks])
        return self._estimate(surely, maybe)

    def average_over_attacks(self) -> Estimate:
        """Mean over the attacks of the accuracy under each; its interval is that of `average`.

        Raises:
            InputError: If there is no attack.
        """
        self._chosen(None)
        masks = [self._survival(lambda column, c=column: column is c) for column in self.columns]
        return self._estimate(*(np.stack(side) for side in zip(*masks, strict=True)))

    def _chosen(self, threats: Iterable[str] | None) -> tuple[str, ...]:
        names = self.threats if threats is None else tuple(dict.fromkeys(threats))
        for name in names:
            if name not in self.threats:
                raise lookup_error("threat", name, self.threats)
        if not names:
            raise InputError("threats: needs at least one, got none; evaluate an attack first.")
        return names

    def _survival(self, keep: Callable[[AttackColumn], bool]) -> tuple[np.ndarray, np.ndarray]:
        """Return two masks, shape (n,): surely survived, and not known to be broken."""
        states = np.stack([column.states for column in self.columns if keep(column)])
        return (states == State.SURVIVED).all(axis=0), (states != State.BROKEN).all(axis=0)

    def _estimate(self, surely: np.ndarray, maybe: np.ndarray) -> Estimate:
        return Estimate(float(surely.mean()), float(maybe.mean()), len(self))


def _freeze(owner: object, name: str, dtype: type, where: str) -> None:
    """Replace an array field by a read-only copy of the dtype, refusing to change a number."""
    given = np.asarray(getattr(owner, name))
    if given.ndim != 1:
        raise InputError(f"{where}: {name} must have shape (n,), got {given.shape}.")
    with np.errstate(invalid="ignore", over="ignore"):
        array = given.astype(dtype)
    whole = np.issubdtype(dtype, np.integer)
    if not np.array_equal(array, given) if whole else not np.isfinite(array).all():
        rule = "whole numbers in range" if whole else "finite numbers"
        raise InputError(f"{where}: {name} must be {rule} ({np.dtype(dtype)}), got {given!r}.")
    array.setflags(write=False)
    object.__setattr__(owner, name, array)


def _same(a: object, b: object) -> bool:
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(a))  # type: ignore[arg-type]
    return all(
        np.array_equal(x, y) if isinstance(x, np.ndarray) else bool(x == y) for x, y in pairs
    )
