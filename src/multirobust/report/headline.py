"""What a comparison says, in sentences that follow from its numbers and their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from multirobust.report.figures import Bars, bar_arrays
from multirobust.report.tables import RunResult, grouped

__all__ = ["findings"]

SYMBOLS = {"linf": "ℓ∞", "l1": "ℓ₁", "l2": "ℓ₂"}


def findings(results: Sequence[RunResult]) -> list[str]:
    """Say who withstands the union best, who falls to another threat, and at what price.

    A difference is called one only where the intervals are apart.
    """
    bars = bar_arrays(results)
    if "union" not in bars.groups:
        return ["No attack was run: the table shows clean accuracy only."]
    return [*_best(bars), *_transfer(bars), *_price(bars, results)]


def _best(bars: Bars) -> Iterator[str]:
    names, values, low, high = _column(bars, "union")
    if not names:
        return
    order = np.argsort(-values, kind="stable")
    best = order[0]
    where = _join([SYMBOLS.get(group, group) for group in bars.groups[1:-1]])
    if values[best] == 0:
        yield f"No defense withstands the union of {where}: every image falls to some attack."
        return
    yield (
        f"{names[best]} withstands the union of {where} on "
        f"{_percent(float(values[best]))} of the images "
        f"({100 * low[best]:.1f} to {100 * high[best]:.1f} %)"
        f"{', the highest share here' if len(names) > 1 else ''}."
    )
    close = [names[i] for i in order[1:] if high[i] >= low[best]]
    if close:
        yield f"That order is not certain: its interval overlaps with that of {_join(close)}."


def _transfer(bars: Bars) -> Iterator[str]:
    """Name the defense with the largest sure gap between two threats."""
    threats = range(1, len(bars.groups) - 1)
    gaps = [
        (bars.low[d, strong] - bars.high[d, weak], d, strong, weak)
        for d in range(len(bars.names))
        for strong in threats
        for weak in threats
        if np.isfinite(bars.values[d, [strong, weak]]).all()
    ]
    if not gaps or max(gaps)[0] <= 0.05:
        return
    _, d, strong, weak = max(gaps)
    symbols = [SYMBOLS.get(bars.groups[i], bars.groups[i]) for i in (strong, weak)]
    yield (
        f"Withstanding one threat is not withstanding another: {bars.names[d]} keeps "
        f"{_percent(bars.values[d, strong])} under {symbols[0]} and "
        f"{_percent(bars.values[d, weak])} under {symbols[1]}."
    )


def _price(bars: Bars, results: Sequence[RunResult]) -> Iterator[str]:
    names, values, _, _ = _column(bars, "union")
    if len(names) < 2 or values.max() == 0:
        return
    best = names[int(values.argmax())]
    at = bars.names.index(best)
    clean, low, high = bars.values[:, 0], bars.low[:, 0], bars.high[:, 0]
    top = int(clean.argmax())
    parts = []
    if low[top] > high[at]:
        points = f"{100 * (clean[top] - clean[at]):.1f} points"
        parts.append(f"{points} of clean accuracy less than {bars.names[top]}")
    seconds = {
        name: sum(known) / len(known)
        for name, runs in grouped(results).items()
        if len(known := [run.training_seconds for run in runs if run.training_seconds]) == len(runs)
    }
    same_device = len({run.device for run in results}) == 1
    if best in seconds and same_device:
        cheapest = min(seconds, key=lambda name: seconds[name])
        ratio = seconds[best] / seconds[cheapest]
        if ratio > 1.1:
            parts.append(f"{ratio:.1f} times the training time of {cheapest}")
    if parts:
        yield f"The price of {best}: {' and '.join(parts)}."


def _column(bars: Bars, key: str) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Return the defenses that have a number in a column, with its ends."""
    column = bars.groups.index(key)
    known = np.isfinite(bars.values[:, column])
    names = [name for name, kept in zip(bars.names, known, strict=True) if kept]
    ends = (bars.values, bars.low, bars.high)
    values, low, high = (array[known, column] for array in ends)
    return names, values, low, high


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
