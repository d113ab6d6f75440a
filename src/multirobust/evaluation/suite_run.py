"""The attacks of a suite, one after the other, on the blocks of a shard."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from multirobust.data import Split
from multirobust.evaluation.display import EvaluationDisplay
from multirobust.evaluation.outcomes import AttackColumn, Outcomes
from multirobust.evaluation.partial import PartialResults
from multirobust.evaluation.runner import BlockResult, Runner
from multirobust.evaluation.state import State
from multirobust.evaluation.suites import NamedAttack

__all__ = ["SuiteRun"]


@final
class SuiteRun:
    """The images of a shard, and which attacks broke which of them so far.

    Args:
        runner: Attacks the model.
        split: All images of the evaluation.
        blocks: Positions of the images of the shard, block by block.
        mode: See `evaluate_suite`.
        partial: What is done already.
        display: Shows progress.
    """

    def __init__(
        self,
        runner: Runner,
        split: Split,
        blocks: list[range],
        *,
        mode: str,
        partial: PartialResults,
        display: EvaluationDisplay,
    ):
        self.runner, self.split, self.blocks = runner, split, blocks
        self.mode, self.partial, self.display = mode, partial, display
        self.index = torch.cat([torch.arange(block.start, block.stop) for block in blocks])
        self.labels = split.labels.cpu()[self.index]
        self.errors: dict[str, list[str]] = {}
        self.broken: dict[str, list[Tensor]] = {}
        self.predictions = self._predictions()

    def _predictions(self) -> Tensor:
        answers = [
            self.runner.predict(self._pixels(torch.arange(block.start, block.stop)))
            for block in self.blocks
        ]
        self._note("clean", [errors for _, errors in answers])
        return torch.cat([predictions for predictions, _ in answers])

    def column(self, named: NamedAttack) -> tuple[AttackColumn, Tensor | None]:
        """Run one attack on what it is to see.

        Returns:
            Its column, and the adversarial images of those that it broke in their order,
            (m, c, h, w), if the runner keeps them.
        """
        seen = (self.predictions == self.labels) & ~self._broken_before(named)
        self.display.attack(named.name, int(seen.sum()))
        rows = [self._rows(block, seen) for block in self.blocks]
        results = [
            self._block(named, block, row) for block, row in zip(self.blocks, rows, strict=True)
        ]
        states, distances = self._untouched(), torch.zeros(len(self.labels))
        states[torch.cat(rows)] = torch.cat([result.states for result in results])
        distances[torch.cat(rows)] = torch.cat([result.distances for result in results])
        self._note(named.name, [result.errors for result in results])
        self.broken.setdefault(named.threat_name, []).append(states == State.BROKEN)
        images = len(self.labels)
        column = AttackColumn(
            name=named.name,
            threat=named.threat_name,
            radius=named.threat.radius,
            states=states.to(torch.uint8).numpy(),
            distances=distances.numpy(),
            seconds=sum(result.seconds for result in results),
            forwards=sum(result.forwards for result in results) / images,
            backwards=sum(result.backwards for result in results) / images,
            settings=repr(named.attack),
        )
        kept = [r.images[r.states == State.BROKEN] for r in results if r.images is not None]
        return column, torch.cat(kept) if kept else None

    def broken_by(self, column: AttackColumn) -> np.ndarray:
        """Return the positions of the images that an attack broke, clean errors left out."""
        right = (self.predictions == self.labels).numpy()
        return self.index.numpy()[right & (column.states == State.BROKEN)]

    def outcomes(self, columns: list[AttackColumn], manifest: dict[str, Any]) -> Outcomes:
        """Return all that was found on the images of the shard."""
        return Outcomes(
            index=self.index.numpy(),
            labels=self.labels.numpy(),
            predictions=self.predictions.numpy(),
            columns=tuple(columns),
            manifest=manifest,
        )

    def _untouched(self) -> Tensor:
        """Return the state of each image that an attack does not see."""
        states = torch.full_like(self.labels, State.SKIPPED)
        states[self.predictions != self.labels] = State.BROKEN
        states[self.predictions == -1] = State.ERROR
        return states

    def _broken_before(self, named: NamedAttack) -> Tensor:
        """Return which images earlier attacks broke that spares them this one."""
        lists = {
            "breakdown": [],
            "per_threat": [self.broken.get(named.threat_name, [])],
            "cascade": self.broken.values(),
        }[self.mode]
        before = [broken for of_threat in lists for broken in of_threat]
        return torch.stack(before).any(0) if before else torch.zeros_like(self.labels).bool()

    def _block(self, named: NamedAttack, block: range, rows: Tensor) -> BlockResult:
        # A process with another processor may have classified an image differently.
        result = self.partial.load(named.name, block.start, len(rows))
        if result is None:
            result = self._attacked(named, rows)
            self.partial.save(named.name, block.start, result)
        self.display.advance(len(rows), int((result.states != State.BROKEN).sum()))
        return result

    def _attacked(self, named: NamedAttack, rows: Tensor) -> BlockResult:
        if not len(rows):
            return BlockResult(torch.zeros(0, dtype=torch.long), torch.zeros(0))
        y = self.labels[rows].to(self.runner.device)
        positions = self.index[rows]
        return self.runner.attack(named, self._pixels(positions), y, positions)

    def _rows(self, block: range, seen: Tensor) -> Tensor:
        """Return where in the shard the images of a block are that are seen."""
        inside = (self.index >= block.start) & (self.index < block.stop)
        return (inside & seen).nonzero().squeeze(1)

    def _pixels(self, positions: Tensor) -> Tensor:
        return self.split.floats(positions.to(self.split.images.device)).to(self.runner.device)

    def _note(self, name: str, errors: list[frozenset[str]]) -> None:
        lines = sorted(frozenset[str]().union(*errors))
        if lines:
            self.errors[name] = lines
