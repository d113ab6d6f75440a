"""What the report shows of runs: figures, and images with their attacked versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multirobust.analysis import plots
from multirobust.attacks import Restarts, threats_from
from multirobust.data import Batch, Data
from multirobust.defenses import ANT, MNGAC, Defense
from multirobust.errors import InputError
from multirobust.evaluation import NamedAttack, build_suite
from multirobust.experiment.building import load_defense, load_model
from multirobust.experiment.results import result_of
from multirobust.experiment.runs import Run
from multirobust.report import GalleryCell, GalleryRow, standard_figures, write_report

__all__ = ["gallery_of", "report_runs"]


def report_runs(
    runs: Sequence[Run],
    path: Path,
    *,
    data: Data | None = None,
    images: int = 3,
    suite: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the report of evaluated runs.

    Args:
        runs: Trained on the same data and evaluated with the same suite.
        path: The HTML file.
        data: The data of the runs, for the gallery; None leaves it out.
        images: How many test images the gallery shows for each defense.
        suite: Which evaluation, as in `result_of`.
        notes: Sentences under the headline.

    Raises:
        InputError: If the runs do not share one data set.
        RunError: If a run has no such evaluation, or the file cannot be written.
    """
    names = sorted({run.recipe.data.name for run in runs})
    if data is not None and len(names) > 1:
        raise InputError(
            f"runs: the images of a report need one data set, these have {', '.join(names)}; "
            "report each alone, or use --images 0."
        )
    results = [result_of(run, suite) for run in runs]
    figures = standard_figures(results, plots.per_norm_bars, plots.union_against_cost)
    first = {run.defense: run for run in reversed(runs)}
    shown = {run.defense: run for run in runs}
    gallery = {name: gallery_of(first[name], data, images) for name in shown} if data else None
    write_report(results, path, figures=figures, gallery=gallery, notes=notes)


def gallery_of(run: Run, data: Data, images: int = 3) -> list[GalleryRow]:
    """Return test images with their attacked versions and what the model makes of each.

    The versions are clean, one for each norm, and learned noise where the defense has a generator.

    Args:
        run: A run that has been trained.
        data: Its data.
        images: How many; the first image of every class comes before the second of any.
    """
    model = load_model(run, data)
    chosen = _class_after_class(data.test.labels)[:images]
    batch = Batch(data.test.floats(chosen), data.test.labels[chosen], chosen)
    versions = _versions(run, load_defense(run, data), model, batch)
    answers = {title: _answer(model, version) for title, version in versions.items()}

    def cell(title: str, row: int) -> GalleryCell:
        prediction, confidence = (answer[row] for answer in answers[title])
        return GalleryCell(
            title=title,
            image=_pixels(versions[title][row]),
            prediction=data.class_names[int(prediction)],
            correct=bool(prediction == batch.y[row]),
            confidence=float(confidence),
        )

    return [
        GalleryRow(
            f"test image {int(index)}, {data.class_names[int(batch.y[row])]}",
            [cell(title, row) for title in versions],
        )
        for row, index in enumerate(chosen)
    ]


def _versions(run: Run, defense: Defense[Any], model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    threats = threats_from(run.recipe.threats)
    suite = build_suite("quick", threats, run.recipe.evaluation)
    versions = {"clean": batch.x}
    versions |= {_title(named): _attacked(model, named, batch) for named in suite.attacks}
    noise = torch.Generator().manual_seed(run.seed)
    if isinstance(defense, MNGAC):
        versions["learned noise"] = defense.augment(batch.x, threats["l2"], noise)
    elif isinstance(defense, ANT):
        versions["learned noise"] = defense.craft(model, batch, generator=noise).detach()
    return versions


def _title(named: NamedAttack) -> str:
    return named.threat.norm


def _attacked(model: nn.Module, named: NamedAttack, batch: Batch) -> Tensor:
    """One start of the attack: enough to show what it does, at half of the time."""
    attack = named.attack.attack if isinstance(named.attack, Restarts) else named.attack
    return attack(model, batch.x, batch.y, generator=torch.Generator().manual_seed(0))


def _class_after_class(labels: Tensor) -> Tensor:
    """Return positions: the first image of each class, then the second of each, and so on."""
    turn = torch.zeros_like(labels)
    for label in labels.unique():
        of_class = labels == label
        turn[of_class] = torch.arange(int(of_class.sum()), device=labels.device)
    return torch.argsort(turn * (int(labels.max()) + 1) + labels)


@torch.no_grad()
def _answer(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    confidence, prediction = model(x).softmax(dim=1).max(dim=1)
    return prediction, confidence


def _pixels(image: Tensor) -> np.ndarray:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
