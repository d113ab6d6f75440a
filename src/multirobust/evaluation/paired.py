"""Two models on the same images: is one more robust, or is it chance?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import final

import numpy as np

from multirobust.errors import InputError
from multirobust.evaluation.outcomes import Outcomes

__all__ = ["PairedComparison", "mcnemar"]


@final
@dataclass(frozen=True)
class PairedComparison:
    """What two models did to the same images.

    Args:
        only_first: Images that the first withstands and the second does not.
        only_second: The reverse.
        n: Number of images that are known of both.
        unknown: Images left out, since an error leaves one of the two open.
    """

    only_first: int
    only_second: int
    n: int
    unknown: int = 0

    @property
    def difference(self) -> float:
        """Robust accuracy of the first minus that of the second, in [-1, 1]."""
        return (self.only_first - self.only_second) / self.n

    @property
    def p_value(self) -> float:
        """Probability of so uneven a split, or one more so, if both were equally robust.

        McNemar's test in its exact form: of the images on which they differ, as many favor the
        first as a fair coin gives heads. Two-sided; 1 where they differ on none.
        """
        total = self.only_first + self.only_second
        tail = min(self.only_first, self.only_second)
        share = math.fsum(math.comb(total, k) / 2**total for k in range(tail + 1))
        return min(1.0, 2 * share)

    def interval(self, *, confidence: float = 0.95) -> tuple[float, float]:
        """Return an interval of the difference.

        The adjusted Wald interval for paired shares, which adds half an image to each of the four
        cells: Bonett and Price, Adjusted Wald confidence interval for a difference of binomial
        proportions based on paired data, J. Educ. Behav. Stat. 2012.

        Args:
            confidence: Probability that it covers the true difference, in (0, 1).
        """
        if not 0 < confidence < 1:
            raise InputError(f"interval: confidence must lie in (0, 1), got {confidence!r}.")
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        size = self.n + 2
        first, second = (self.only_first + 1) / size, (self.only_second + 1) / size
        half = z * math.sqrt((first + second - (first - second) ** 2) / size)
        center = first - second
        return max(-1.0, center - half), min(1.0, center + half)

    def __str__(self) -> str:
        """Show "+2.0 [0.4, 3.6] points, p = 0.013, on 500 images (14 to 4)"."""
        low, high = self.interval()
        left = f", {self.unknown} left out" if self.unknown else ""
        return (
            f"{100 * self.difference:+.1f} [{100 * low:.1f}, {100 * high:.1f}] points, "
            f"p = {self.p_value:.2g}, on {self.n} images{left} "
            f"({self.only_first} to {self.only_second})"
        )


def mcnemar(
    first: Outcomes, second: Outcomes, threats: Iterable[str] | None = None
) -> PairedComparison:
    """Compare the robustness of two models to the union of threats on the images of both.

    Args:
        first: Outcomes of one model.
        second: Outcomes of the other, of the same images in any order.
        threats: Names of threats; None means all that were attacked.

    Returns:
        The comparison; images that an error leaves open for either are left out.

    Raises:
        InputError: If the images, labels, threats or radii differ, or no image is known of both.

    References: McNemar, Note on the sampling error of the difference between correlated
    proportions or percentages, Psychometrika 1947.
    """
    names = tuple(dict.fromkeys(threats)) if threats is not None else first.threats
    _check_pair(first, second, names)
    masks = []
    for outcomes in (first, second):
        order = np.argsort(outcomes.index)
        masks.append([mask[order] for mask in outcomes.survival(names)])
    (sure, maybe), (other_sure, other_maybe) = masks
    known = (sure == maybe) & (other_sure == other_maybe)
    if not known.any():
        raise InputError(
            "mcnemar: no image has a known outcome in both; look at their errors, or evaluate "
            "in the mode per_threat or breakdown to compare single threats."
        )
    return PairedComparison(
        only_first=int((known & sure & ~other_sure).sum()),
        only_second=int((known & ~sure & other_sure).sum()),
        n=int(known.sum()),
        unknown=int((~known).sum()),
    )


def _check_pair(first: Outcomes, second: Outcomes, names: tuple[str, ...]) -> None:
    a, b = np.argsort(first.index), np.argsort(second.index)
    same = np.array_equal(first.index[a], second.index[b])
    same = same and np.array_equal(first.labels[a], second.labels[b])
    digests = {outcomes.manifest.get("split_digest") for outcomes in (first, second)} - {None}
    if not same or len(digests) > 1:
        raise InputError(
            f"mcnemar: both must be of the same images, got {len(first)} and {len(second)} that "
            "are not; evaluate both with the same data, --limit and --split."
        )
    for name in names:
        radii = [
            {column.radius for column in outcomes.columns if column.threat == name}
            for outcomes in (first, second)
        ]
        if radii[0] != radii[1] and all(radii):
            raise InputError(
                f"mcnemar: both must have one radius of {name}, got {radii[0]} and {radii[1]}; "
                "evaluate both with the same threats."
            )
