"""Attack a classifier with a suite and record what happened to every image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from multirobust.data import Split
from multirobust.errors import InputError
from multirobust.evaluation.audit import Finding, audit_model, audit_outcomes
from multirobust.evaluation.blocks import Shard
from multirobust.evaluation.classifier import check_classifier, device_of
from multirobust.evaluation.course import Course, Part
from multirobust.evaluation.display import EvaluationDisplay, NoDisplay
from multirobust.evaluation.outcomes import AttackColumn, Outcomes
from multirobust.evaluation.partial import PartialResults
from multirobust.evaluation.state import State
from multirobust.evaluation.storage import save_images
from multirobust.evaluation.suite_run import SuiteRun
from multirobust.evaluation.suites import Suite
from multirobust.provenance import provenance
from multirobust.threats import Threat, check_scale

__all__ = ["Ahead", "check_radii", "evaluate_suite", "refuse_findings"]

Ahead: TypeAlias = Callable[[Sequence[Part], Path], None]
"""Is given what is not done, and the folder of partial results, before the attacks begin."""


def evaluate_suite(
    model: nn.Module,
    split: Split,
    suite: Suite,
    *,
    mode: str | None = None,
    batch_size: int = 256,
    block_size: int = 512,
    limit: int | None = None,
    shard: Shard | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    manifest: dict[str, Any] | None = None,
    partial: Path | None = None,
    images: Path | None = None,
    audit: bool = True,
    strict: bool = False,
    report: Callable[[str], None] = lambda line: None,
    display: EvaluationDisplay | None = None,
    ahead: Ahead | None = None,
    keep: Callable[[Outcomes], None] = lambda outcomes: None,
) -> Outcomes:
    """Attack a classifier with every attack of a suite.

    Where a model or an attack raises, a prediction is NaN, or an adversarial image lies outside its
    ball, the images it concerns are recorded as `State.ERROR`, neither robust nor broken, and the
    manifest says why under "errors". Where memory runs out the batch is halved.

    Args:
        model: Maps images in [0, 1] to logits.
        split: Images and labels.
        suite: The attacks.
        mode: Which images an attack sees: all that the model gets right ("breakdown"); those that
            the earlier attacks of its threat left standing ("per_threat": exact for every threat
            and for the union); or those that all earlier attacks left standing ("cascade": exact
            for the union only). None takes the suite's.
        batch_size: Images a pass; bounds the memory.
        block_size: Images that are attacked together and share random numbers. What was found is
            kept after each block, and shards are made of blocks.
        limit: Use only the first images.
        shard: Attack only a part of the blocks; see `merge`.
        seed: Of the attacks' random starts.
        device: Where to run; None takes that of the model's parameters.
        manifest: What the outcomes should say besides what is known here.
        partial: Folder for what is done so far, removed at the end. Killed at any point, the same
            call goes on there and gives the same outcomes.
        images: Folder for the adversarial images that broke the model, one file an attack.
        audit: Look for what makes a robust accuracy meaningless, before and after the attacks; see
            `audit_model`. The findings are reported and kept in the manifest under "audit".
        strict: Make every finding of the audit an error.
        report: Receives one line for each finding, and when an attack is done.
        display: Shows progress.
        ahead: Called once, with `partial`, if anything is to do. What other processes do of it
            there, by `Course.attack`, is not done again.
        keep: Is given the outcomes before the partial results are removed, so that a kill or a full
            disk while they are written costs no attack.

    Returns:
        The outcomes, in the order of the split.

    Raises:
        InputError: If an argument is out of range, a radius is of the wrong scale (see
            `check_radii`), the model is not a classifier of these images (see `check_classifier`)
            or hides its gradient from an attack that needs it, or, with strict, if the audit finds
            anything.
        RunError: If a folder cannot be written.
    """
    check_classifier(model, split)
    check_radii(suite, split)
    course = Course(
        model=model,
        split=split.first(min(limit, len(split))) if limit is not None else split,
        suite=suite,
        mode=mode or suite.mode,
        batch_size=batch_size,
        block_size=block_size,
        shard=shard or Shard(),
        seed=seed,
        device=torch.device(device or device_of(model)),
        keep_images=images is not None,
    )
    runner = course.runner(report)
    found = _audited(model, course.split, suite, seed, course.device) if audit else ()
    findings = _told(found, strict, report)
    done = PartialResults(partial, course.identity)
    parts = course.parts(done)
    if ahead is not None and partial is not None and parts:
        ahead(parts, partial)
    run = course.whole(runner, done, display or NoDisplay())
    columns, kept = _columns(run, suite, images, report)
    outcomes = run.outcomes(
        columns,
        course.facts
        | {"errors": run.errors, **kept}
        | provenance(course.device)
        | (manifest or {}),
    )
    found = audit_outcomes(outcomes) if audit else ()
    outcomes.manifest["audit"] = findings + _told(found, strict, report)
    keep(outcomes)
    done.clear()
    return outcomes


def check_radii(suite: Suite, split: Split) -> None:
    """Raise where a ball of a suite is on another scale than the pixels, as one of radius 128 is.

    Raises:
        InputError: See `threats.check_scale`.
    """
    for named in suite.attacks:
        if isinstance(named.threat, Threat):
            shape = split.images.shape[1:]
            check_scale(named.threat_name, named.threat, shape, source=split.source)


def _audited(
    model: nn.Module, split: Split, suite: Suite, seed: int, device: torch.device
) -> tuple[Finding, ...]:
    balls = {named.threat_name: named.threat for named in suite.attacks}
    norms = {name: ball for name, ball in balls.items() if isinstance(ball, Threat)}
    return audit_model(model, split, seed=seed, threats=norms, device=device)


def _columns(
    run: SuiteRun, suite: Suite, images: Path | None, report: Callable[[str], None]
) -> tuple[list[AttackColumn], dict[str, Any]]:
    """Return what each attack did and, if images are kept, what the manifest says of the files."""
    columns, digests = [], {}
    for named in suite.attacks:
        column, found = run.column(named)
        if images is not None and found is not None:
            path = images / f"{named.name}.safetensors"
            digests[named.name] = save_images(path, run.broken_by(column), found)
        columns.append(column)
        report(_summary(column, run.errors.get(named.name, [])))
    return columns, {} if images is None else {"adversarial": digests}


def refuse_findings(found: Sequence[Mapping[str, str]]) -> None:
    """Raise the first of an audit's findings, as a manifest holds them.

    Raises:
        InputError: If there is any.
    """
    for finding in found:
        raise InputError(
            f"audit: {finding['code']}: {finding['message']} Mend it, or go on without strict."
        )


def _told(
    findings: tuple[Finding, ...], strict: bool, report: Callable[[str], None]
) -> list[dict[str, str]]:
    """Report the findings and return them as JSON values; with strict, raise the first."""
    found = [{"code": finding.code, "message": finding.message} for finding in findings]
    if strict:
        refuse_findings(found)
    for finding in findings:
        report(f"audit: {finding.code}: {finding.message}")
    return found


def _summary(column: AttackColumn, errors: list[str]) -> str:
    """Return one line on what an attack did."""
    count = {state: int((column.states == state).sum()) for state in State}
    line = f"{column.name}: {count[State.SURVIVED]} of {len(column.states)} survive"
    if count[State.SKIPPED]:
        line += f", {count[State.SKIPPED]} were broken before"
    line += f" ({column.seconds:.1f} s)"
    why = f", such as {errors[0]}" if errors else ""
    failed = count[State.ERROR]
    return f"{line}; {failed} ended in errors{why}" if failed else line
