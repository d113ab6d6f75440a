"""How sure a number is: the Wilson interval of a share, and the spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import final

from multirobust.errors import InputError

__all__ = ["Difference", "Estimate", "difference_by_seed", "mean_and_std", "student_half", "wilson"]


def wilson(share: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share.

    Unlike the textbook normal interval, it stays within [0, 1] and has a width at 0 % and 100 %:
    no image broken out of 20 is not proof of an accuracy of 1.

    Args:
        share: Observed share in [0, 1], successes / n. It may be the mean of n numbers in [0, 1]
            rather than of zeros and ones; their variance is at most share * (1 - share), so the
            interval is then on the wide side.
        n: Number of images, at least 1.
        confidence: Probability that the interval covers the true share.

    Returns:
        Lower and upper end, 0 <= lower <= share <= upper <= 1.

    Raises:
        InputError: If an argument is out of its range.

    References:
        Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    if not (0 <= share <= 1 and n >= 1 and 0 < confidence < 1):
        raise InputError(
            f"wilson: needs a share in [0, 1], n >= 1 and a confidence inside (0, 1), got "
            f"{share!r}, {n!r} and {confidence!r}; pass successes / n and n."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 / (1 + z * z / n)
    center = scale * (share + z * z / (2 * n))
    half = scale * z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and 1 the ends are exact in algebra but not in floating point.
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over seeds and the sample standard deviation (ddof = 1).

    One seed has no spread: its standard deviation is None rather than a misleading 0.

    Raises:
        InputError: If there is no value.
    """
    if not values:
        raise InputError("mean_and_std: needs at least one value, got none; pass one a seed.")
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def student_half(values: Sequence[float]) -> float | None:
    """Return half of the 95 % interval of a mean over seeds, by Student's t.

    It says how far the mean of another set of seeds may lie. One value has none.

    Raises:
        InputError: If there is no value.
    """
    _, spread = mean_and_std(values)
    if spread is None:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(len(values) - 1, 0.975)) * spread / math.sqrt(len(values))


@final
@dataclass(frozen=True)
class Difference:
    """How two ways of training differ, seed by seed.

    Args:
        mean: Of the differences, first minus second.
        half: Half of its 95 % interval, by Student's t over the seeds; None for one seed.
        seeds: Those that both were trained with.
    """

    mean: float
    half: float | None
    seeds: tuple[int, ...]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.half is not None and abs(self.mean) > self.half


def difference_by_seed(
    first: Mapping[int, float], second: Mapping[int, float]
) -> Difference | None:
    """Return the mean difference of two ways of training over the seeds of both.

    A seed gives both the same first weights and order of the images, so that what the seeds
    differ in themselves drops out.

    Args:
        first: A number, such as the union, by seed.
        second: The same for the other.

    Returns:
        None if they share no seed.
    """
    seeds = tuple(sorted({*first} & {*second}))
    gaps = [first[seed] - second[seed] for seed in seeds]
    if not gaps:
        return None
    return Difference(statistics.fmean(gaps), student_half(gaps), seeds)


@final
@dataclass(frozen=True)
class Estimate:
    """An accuracy with what is known about it.

    Two doubts are kept apart. An image whose attack failed with an error is neither robust nor
    broken, which gives a range; and the n images are a sample, which gives an interval.

    Args:
        range_low: Accuracy in [0, 1] if every unknown image is broken.
        range_high: Accuracy in [0, 1] if every unknown image survives; equal without errors.
        n: Number of images.
    """

    range_low: float
    range_high: float
    n: int

    @property
    def value(self) -> float:
        """The accuracy; with errors the lower end of its range, which they count against."""
        return self.range_low

    @property
    def exact(self) -> bool:
        """Whether no image is unknown, so that the range is one number."""
        return self.range_low == self.range_high

    @property
    def low(self) -> float:
        """Lower end of the 95 % Wilson interval (of the range's lower end)."""
        return wilson(self.range_low, self.n)[0]

    @property
    def high(self) -> float:
        """Upper end of the 95 % Wilson interval (of the range's upper end)."""
        return wilson(self.range_high, self.n)[1]

    def __str__(self) -> str:
        """Show percent: "43.4 [42.1, 44.8]", or "43.0–44.0" where errors leave a range."""
        if self.exact:
            return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]".replace("%", "")
        return f"{self.range_low:.1%}–{self.range_high:.1%}".replace("%", "")
