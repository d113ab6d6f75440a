"""Robustness curves: accuracy against radius, as a view of the least distances that were found.

Balls of one norm are nested. So an adversarial image at distance d breaks its image at every radius
from d on, whatever the radius at which it was found, and the curve can be read at any radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from multirobust.errors import DataError, InputError, lookup_error
from multirobust.evaluation.intervals import Estimate
from multirobust.evaluation.outcomes import AttackColumn, Outcomes
from multirobust.evaluation.state import State
from multirobust.evaluation.storage import MANIFEST, load, save

__all__ = ["Curves", "at_radius", "load_curves", "save_curves"]

UNKNOWN = -1.0
"""Radius up to which nothing is known, not even at 0: the clean prediction is an error."""


@final
@dataclass(frozen=True, eq=False)
class Curves:
    """What attacks at ascending radii found in each norm; the curves are views of it.

    Args:
        outcomes: One column for each attack at each radius; its threat is the name that
            `at_radius` gives. The entry "curves" of the manifest holds the benchmark radii by norm.

    Raises:
        InputError: If these are outcomes of something else.
    """

    outcomes: Outcomes

    def __post_init__(self) -> None:
        norms = {_norm_of(column) for column in self.outcomes.columns}
        benchmarks = self.outcomes.manifest.get("curves")
        if not isinstance(benchmarks, dict) or not norms or norms != {*benchmarks}:
            raise InputError(
                f"Curves: outcomes must hold attacks at several radii of each norm, and the "
                f"benchmark radii in their manifest, got {benchmarks!r} with attacks of "
                f"{sorted(norms)}; use what `robustness_curve` returns."
            )

    def __len__(self) -> int:
        return len(self.outcomes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curves) and self.outcomes == other.outcomes

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Show, a line a norm, the accuracy in percent at half, one and two benchmark radii."""
        lines = [f"{len(self)} images", f"clean  {self.clean()}"]
        for norm in self.norms:
            at = [self.benchmark(norm) * share for share in (0.5, 1, 2)]
            parts = [f"{radius:.4g}: {self.accuracy(norm, radius)}" for radius in at]
            lines.append(f"{norm:<6} {', '.join(parts)}")
        return "\n".join(lines)

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the norms, in the order in which they were attacked."""
        return tuple(dict.fromkeys(_norm_of(column) for column in self.outcomes.columns))

    @property
    def manifest(self) -> dict[str, Any]:
        """What produced them, as JSON values."""
        return self.outcomes.manifest

    def benchmark(self, norm: str) -> float:
        """Return the benchmark radius of a norm, on the [0, 1] pixel scale."""
        self._columns(norm)
        return float(self.manifest["curves"][norm])

    def radii(self, norm: str) -> tuple[float, ...]:
        """Return the radii that were attacked, ascending."""
        return tuple(sorted({column.radius for column in self._columns(norm)}))

    def passes(self, norm: str) -> tuple[float, float]:
        """Return the forward and the backward passes per image."""
        columns = self._columns(norm)
        return sum(c.forwards for c in columns), sum(c.backwards for c in columns)

    def distances(self, norm: str) -> np.ndarray:
        """Return the least distance at which each image is broken, float64, shape (n,).

        0 where the clean prediction is wrong; infinity where no adversarial image was found.
        """
        return self._of(norm)[0]

    def known_up_to(self, norm: str) -> np.ndarray:
        """Return up to which radius each image is known to stand or be broken, float64, (n,).

        The largest radius attacked; where an attack ended in an error, the radius before; -1 where
        the clean prediction is an error. Beyond it an image stands or not, unless it is broken at
        a distance that counts for all greater radii.
        """
        return self._of(norm)[1]

    def clean(self) -> Estimate:
        """Accuracy without any attack: every curve at radius 0."""
        return self.outcomes.clean()

    def accuracy(self, norm: str, radius: float) -> Estimate:
        """Accuracy in the ball of any radius.

        Beyond the largest radius attacked, images that stand there are unknown and give a range;
        so do, from the radius before on, images whose attack ended in an error.

        Args:
            norm: One of `norms`.
            radius: 0 or more, on the [0, 1] pixel scale.

        Raises:
            InputError: If the norm is unknown or the radius is negative or no number.
        """
        if not radius >= 0:
            raise InputError(f"accuracy: radius must be 0 or more, got {radius!r}.")
        sure, maybe = self._shares(norm, np.array([radius], dtype=np.float64))
        return Estimate(float(sure[0]), float(maybe[0]), len(self))

    def points(self, norm: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the whole curve up to the largest radius attacked, as a step function.

        Args:
            norm: One of `norms`.

        Returns:
            Radii, ascending from 0; the accuracy from each to the next; and the lower and upper
            ends of its 95 % interval, which errors widen. Float64, all of one shape (m,).
        """
        distances, known = self._of(norm)
        radii = np.array((0.0, *self.radii(norm)))
        jumps = np.concatenate([radii, distances, _after(known)])
        jumps = np.unique(jumps[(jumps >= 0) & (jumps <= radii[-1])])
        sure, maybe = self._shares(norm, jumps)
        estimates = [
            Estimate(float(a), float(b), len(self)) for a, b in zip(sure, maybe, strict=True)
        ]
        value, low, high = np.array([(e.value, e.low, e.high) for e in estimates]).T
        return jumps, value, low, high

    @cached_property
    def _found(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Distances and the radii up to which all is known, by norm."""
        return {norm: _found_in(self.outcomes, self._columns(norm)) for norm in self.norms}

    def _of(self, norm: str) -> tuple[np.ndarray, np.ndarray]:
        if norm not in self._found:
            raise lookup_error("norm", norm, self.norms)
        return self._found[norm]

    def _columns(self, norm: str) -> list[AttackColumn]:
        if norm not in self.norms:
            raise lookup_error("norm", norm, self.norms)
        return [column for column in self.outcomes.columns if _norm_of(column) == norm]

    def _shares(self, norm: str, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which shares of the images surely, and possibly, stand at these radii."""
        distances, known = self._of(norm)
        broken_first = np.sort(distances[distances <= known])
        unknown_first = np.sort(known[distances > known])
        lost = np.searchsorted(broken_first, radii, side="right")
        lost = lost + np.searchsorted(unknown_first, radii, side="left")
        broken = np.searchsorted(np.sort(distances), radii, side="right")
        n = len(distances)
        return (n - lost) / n, (n - broken) / n


def at_radius(norm: str, radius: float) -> str:
    """Return the name of the threat that the ball of a norm with a radius is."""
    return f"{norm}@{radius!r}"


def save_curves(curves: Curves, folder: Path) -> None:
    """Write curves into a folder, as `evaluation.save` does, both files whole or neither.

    Raises:
        InputError: If the manifest holds more than JSON values.
        RunError: If the folder or a file cannot be written.
    """
    save(curves.outcomes, folder)


def load_curves(folder: Path) -> Curves:
    """Read what `save_curves` wrote.

    Raises:
        DataError: If a file is missing, truncated, changed, or holds something else.
    """
    outcomes = load(folder)
    try:
        return Curves(outcomes)
    except InputError as error:
        raise DataError(
            f"{folder / MANIFEST}: holds no robustness curves, but another evaluation. Give a "
            "folder that `multirobust curve` wrote, or compute them anew."
        ) from error


def _found_in(outcomes: Outcomes, columns: list[AttackColumn]) -> tuple[np.ndarray, np.ndarray]:
    distances = np.full(len(outcomes), np.inf)
    known = np.full(len(outcomes), max(column.radius for column in columns))
    radii = [0.0, *sorted({column.radius for column in columns})]
    for column in columns:
        # Rounded to float32, a distance may exceed the radius of its ball.
        within = np.minimum(column.distances.astype(np.float64), column.radius)
        broken = column.states == State.BROKEN
        distances[broken] = np.minimum(distances, within)[broken]
        before = radii[radii.index(column.radius) - 1]
        failed = column.states == State.ERROR
        known[failed] = np.minimum(known, before)[failed]
    known[outcomes.predictions < 0] = UNKNOWN
    for array in (distances, known):
        array.setflags(write=False)
    return distances, known


def _after(known: np.ndarray) -> np.ndarray:
    """Return the least radii beyond those up to which all is known."""
    return np.nextafter(known, np.inf)


def _norm_of(column: AttackColumn) -> str:
    return column.threat.rpartition("@")[0]
