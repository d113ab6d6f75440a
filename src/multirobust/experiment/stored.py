"""The evaluations that lie in a run's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from multirobust import evaluation
from multirobust.errors import DataError
from multirobust.evaluation import Outcomes
from multirobust.evaluation.storage import MANIFEST
from multirobust.experiment.building import weights_digest
from multirobust.experiment.runs import Run

__all__ = ["StoredEvaluation", "stored_evaluations"]


@final
@dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation of a run.

    Args:
        name: Of its folder, such as "quick" or "autoattack-1f0c9a2e".
        outcomes: What was found.
    """

    name: str
    outcomes: Outcomes

    @property
    def settings(self) -> dict[str, Any]:
        """What decided the outcomes: suite, split, seed, radii, attacks."""
        found = self.outcomes.manifest.get("evaluation")
        return found if isinstance(found, dict) else {}


def stored_evaluations(
    run: Run, report: Callable[[str], None] = lambda line: None
) -> list[StoredEvaluation]:
    """Return every whole evaluation of the run's present weights, by the name of its folder.

    Args:
        run: A run that has been trained.
        report: Receives a line for each that is left out: damaged, of other weights, or a shard.
    """
    digest, found = weights_digest(run), []
    for marker in sorted((run.folder / "evaluation").glob(f"*/{MANIFEST}")):
        name = marker.parent.name
        try:
            outcomes = evaluation.load(marker.parent)
        except DataError as error:
            report(f"left out {name}: {error}")
            continue
        stored = StoredEvaluation(name, outcomes)
        if outcomes.manifest.get("weights") != digest:
            report(f"left out {name}: it is of other weights; evaluate the run again")
        elif "shard" in stored.settings:
            report(f"left out {name}: it is one shard; join them with `multirobust merge`")
        else:
            found.append(stored)
    return found
