"""What tables and reports need to know of runs, and of evaluations that no run of ours made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from multirobust import evaluation
from multirobust.errors import RunError, suggestion
from multirobust.evaluation import Outcomes
from multirobust.evaluation.storage import MANIFEST
from multirobust.experiment.building import weights_digest
from multirobust.experiment.pipeline import evaluation_name
from multirobust.experiment.runs import MARKER, Run, find_runs, training_facts
from multirobust.report import RunResult, read_record

__all__ = ["evaluated", "outcomes_at", "result_of", "results_of"]


def results_of(paths: Sequence[Path], suite: str | None = None) -> list[RunResult]:
    """Return the results that paths stand for, from this machine or another.

    A path is a run folder, a folder of run folders, a folder of outcomes (such as
    RUN/evaluation/quick, or what `multirobust evaluate --model` wrote), a folder of those, or a
    JSON file that `multirobust compare --record` wrote. Outcomes that would be called alike, such
    as two evaluations of one model, are told apart by the names of their folders.

    Args:
        paths: At least one.
        suite: Of runs, which evaluation, by the name of its folder; None takes the recipe's own.

    Raises:
        InputError: If a path is none of these.
        RunError: If a run has not been trained or evaluated.
        DataError: If outcomes are damaged.
    """
    found: list[tuple[RunResult, str]] = []
    for path in paths:
        inside = sorted(marker.parent for marker in path.glob(f"*/{MANIFEST}"))
        if path.suffix == ".json":
            found += [(result, "") for result in read_record(path)]
        elif (path / MANIFEST).is_file():
            found.append((_result_at(path), path.resolve().name))
        else:
            if not inside or any(path.glob(f"*/{MARKER}")):
                found += [(result_of(run, suite), "") for run in find_runs([path])]
            found += [(_result_at(folder), folder.name) for folder in inside]
    return _told_apart(found)


def outcomes_at(path: Path, suite: str | None = None) -> Outcomes:
    """Return the outcomes of one evaluation: a run folder, or a folder of outcomes.

    Raises:
        InputError: If there is none at the path.
        RunError: If the path stands for several, or files are damaged.
    """
    results = results_of([path], suite)
    if len(results) != 1:
        names = ", ".join(f"{result.name} (seed {result.seed})" for result in results)
        raise RunError(f"{path} holds {len(results)} evaluations: {names}. Name one of them.")
    return results[0].outcomes


def result_of(run: Run, suite: str | None = None, *, split: str = "test") -> RunResult:
    """Return what the tables need to know of a run.

    Args:
        run: A run that has been trained and evaluated.
        suite: Which evaluation, by the name of its folder; None takes what `run.recipe` asks for.
        split: Without a suite, of which images: "test" or "validation".

    Raises:
        RunError: If the run has not been trained, or not been evaluated so with these weights.
    """
    if not run.trained:
        raise RunError(
            f"{run.folder} has not finished training; run the command that trained it again, or "
            "leave it out by naming the others."
        )
    facts = training_facts(run)
    outcomes = evaluation.load(_evaluation_folder(run, suite or evaluation_name(run, split=split)))
    if outcomes.manifest.get("weights") != weights_digest(run):
        raise RunError(
            f"{run.folder} was evaluated with other weights than it has now; run `multirobust "
            f"evaluate {run.folder}`."
        )
    return RunResult(
        run.defense,
        run.seed,
        outcomes,
        training_seconds=facts["seconds"],
        forwards=facts["forwards"],
        backwards=facts["backwards"],
        device=facts["device"],
    )


def evaluated(run: Run, *, split: str = "test") -> bool:
    """Whether a trained run has outcomes of what `run.recipe` asks for."""
    return (run.folder / "evaluation" / evaluation_name(run, split=split) / MANIFEST).is_file()


def _told_apart(found: Sequence[tuple[RunResult, str]]) -> list[RunResult]:
    """Add the name of its folder to each result that shares name and seed with another."""
    count = Counter((result.name, result.seed) for result, _ in found)
    return [
        replace(result, name=f"{result.name} ({folder})")
        if folder and count[result.name, result.seed] > 1
        else result
        for result, folder in found
    ]


def _result_at(folder: Path) -> RunResult:
    """Return the result of a folder of outcomes; of its training nothing is known."""
    outcomes = evaluation.load(folder)
    run = outcomes.manifest.get("run") or {}
    name = outcomes.manifest.get("name") or run.get("defense") or folder.name
    return RunResult(str(name), int(run.get("training_seed") or 0), outcomes)


def _evaluation_folder(run: Run, name: str) -> Path:
    folder = run.folder / "evaluation"
    known = sorted(path.parent.name for path in folder.glob("*/outcomes.json"))
    if name not in known:
        there = f" It has: {', '.join(known)}." if known else ""
        raise RunError(
            f"{run.folder} has no evaluation {name!r}.{suggestion(name, known)} Run `multirobust "
            f"evaluate {run.folder}`.{there}"
        )
    return folder / name
