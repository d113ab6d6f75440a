"""Attacks at ascending radii: what a robustness curve is computed from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from multirobust.attacks import Attack
from multirobust.data import Split
from multirobust.errors import InputError, lookup_error
from multirobust.evaluation.blocks import Shard, blocks_of
from multirobust.evaluation.classifier import check_classifier, device_of
from multirobust.evaluation.course import facts_of
from multirobust.evaluation.curve_attacks import CurveAttacks
from multirobust.evaluation.curves import Curves, at_radius
from multirobust.evaluation.display import EvaluationDisplay, NoDisplay
from multirobust.evaluation.named import NamedAttack
from multirobust.evaluation.outcomes import AttackColumn
from multirobust.evaluation.partial import PartialResults
from multirobust.evaluation.runner import Runner
from multirobust.evaluation.state import State
from multirobust.evaluation.suite_run import SuiteRun
from multirobust.provenance import provenance
from multirobust.threats import Threat

__all__ = ["MULTIPLES", "AttacksWithin", "robustness_curve"]

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""The radii that are attacked by default, in units of the benchmark radius."""

AttacksWithin: TypeAlias = Callable[[Threat], Mapping[str, Attack]]
"""Returns the attacks within a ball by name; each sees what the ones before it left standing."""


def robustness_curve(
    model: nn.Module,
    split: Split,
    threats: Mapping[str, Threat],
    *,
    radii: Mapping[str, Sequence[float]] | None = None,
    attack: AttacksWithin | None = None,
    batch_size: int = 256,
    block_size: int = 512,
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    manifest: dict[str, Any] | None = None,
    partial: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    display: EvaluationDisplay | None = None,
    keep: Callable[[Curves], None] = lambda curves: None,
) -> Curves:
    """Attack a classifier at ascending radii of each norm.

    An image broken at a radius is broken at every larger one, so it is attacked until it breaks.
    Exceptions, NaN and want of memory are dealt with as in `evaluate_suite`.

    Args:
        model: Maps images in [0, 1] to logits.
        split: Images and labels.
        threats: The balls at their benchmark radii, by the name of the norm.
        radii: Which radii to attack, by norm, on the [0, 1] pixel scale; 0 costs nothing. What is
            not named gets `MULTIPLES` of its benchmark radius.
        attack: Makes the attacks of each ball; None takes `CurveAttacks()`.
        batch_size: Images a pass; bounds the memory.
        block_size: Images that are attacked together and share random numbers.
        limit: Use only the first images.
        seed: Of the attacks' random starts.
        device: Where to run; None takes that of the model's parameters.
        manifest: What the curves should say besides what is known here, as JSON values.
        partial: Folder for what is done so far, removed at the end. Killed at any point, the same
            call goes on there and gives the same curves.
        report: Receives a line when a radius is done at which any image was attacked.
        display: Shows progress.
        keep: Is given the curves before the partial results are removed.

    Raises:
        InputError: If an argument is out of range or the model is not a classifier of these images
            (see `check_classifier`).
        RunError: If a folder cannot be written.
    """
    grid = _grid(threats, radii or {})
    check_classifier(model, split)
    split = split.first(min(limit, len(split))) if limit is not None else split
    device = torch.device(device or device_of(model))
    attack = attack or CurveAttacks()
    plan = [named for name in threats for named in _plan(name, threats[name], grid[name], attack)]
    facts = {
        "curves": {name: threat.radius for name, threat in threats.items()},
        "attack": repr(attack),
        "seed": seed,
        "batch_size": batch_size,
        "block_size": block_size,
        **facts_of(model, split),
    }
    attacks = [[named.name, repr(named.attack)] for named in plan]
    done = PartialResults(partial, facts | {"attacks": attacks})
    run = SuiteRun(
        Runner(model, device=device, batch_size=batch_size, seed=seed, report=report),
        split,
        blocks_of(len(split), block_size, Shard()),
        mode="per_threat",
        partial=done,
        display=display or NoDisplay(),
    )
    columns = _columns(run, plan, report)
    curves = Curves(
        run.outcomes(
            columns, facts | {"errors": run.errors} | provenance(device) | (manifest or {})
        )
    )
    keep(curves)
    done.clear()
    return curves


def _grid(
    threats: Mapping[str, Threat], radii: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Return the radii to attack of each norm, ascending, all above 0."""
    if not threats:
        raise InputError("threats: needs at least one norm, got none; see `threats_for`.")
    for name in radii:
        if name not in threats:
            raise lookup_error("norm of radii", name, threats)
    grid = {}
    for name, threat in threats.items():
        given = radii.get(name, _multiples(threat))
        wrong = [radius for radius in given if not (math.isfinite(radius) and radius >= 0)]
        grid[name] = sorted({float(radius) for radius in given if radius > 0})
        if wrong or not grid[name]:
            raise InputError(
                f"radii: those of {name} must be finite, 0 or more, and at least one above 0, got "
                f"{list(given)!r}; leave {name} out for the default."
            )
    return grid


def _multiples(threat: Threat) -> list[float]:
    """Return the default radii, without those that the threat refuses: an linf ball above 1."""
    radii = []
    for share in MULTIPLES:
        with contextlib.suppress(InputError):
            radii.append(replace(threat, radius=share * threat.radius).radius)
    return radii


def _plan(
    name: str, threat: Threat, radii: Sequence[float], attack: AttacksWithin
) -> list[NamedAttack]:
    return [
        NamedAttack(f"{label}_{at_radius(name, radius)}", chosen, name)
        for radius in radii
        for label, chosen in attack(replace(threat, radius=radius)).items()
    ]


def _columns(
    run: SuiteRun, plan: Sequence[NamedAttack], report: Callable[[str], None]
) -> list[AttackColumn]:
    """Attack, and name the threat of each column by norm and radius."""
    columns: list[AttackColumn] = []
    for i, named in enumerate(plan):
        column, _ = run.column(named)
        threat = at_radius(named.threat_name, column.radius)
        columns.append(replace(column, threat=threat))
        following = plan[i + 1 : i + 2]
        if not following or following[0].threat.radius != column.radius:
            here = [done for done in columns if done.threat == threat]
            if any(done.forwards for done in here):
                report(_summary(here))
    return columns


def _summary(columns: Sequence[AttackColumn]) -> str:
    """Return one line on what the attacks of a radius left."""
    last = columns[-1]
    norm = last.threat.rpartition("@")[0]
    failed = int((last.states == State.ERROR).sum())
    line = f"{norm} {last.radius:.4g}: {int((last.states == State.SURVIVED).sum())} of "
    line += f"{len(last.states)} survive ({sum(column.seconds for column in columns):.1f} s)"
    return f"{line}; {failed} ended in errors" if failed else line
