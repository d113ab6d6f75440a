"""What the report shows of runs: figures, and images with their attacked versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from multirobust.analysis import plots
from multirobust.attacks import threats_from
from multirobust.data import Data
from multirobust.defenses import MNGAC
from multirobust.evaluation import NamedAttack, build_suite
from multirobust.experiment.pipeline import load_defense, load_model, result_of
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
        runs: Trained and evaluated with the same suite.
        path: The HTML file.
        data: The data of the runs, for the gallery; None leaves it out.
        images: How many test images the gallery shows for each defense.
        suite: Whose outcomes; None takes that of the first run's recipe.
        notes: Sentences under the headline.
    """
    suite = suite or runs[0].recipe.evaluation.suite
    results = [result_of(run, suite) for run in runs]
    figures = standard_figures(results, plots.per_norm_bars, plots.union_against_cost)
    first = {run.defense: run for run in reversed(runs)}
    shown = {run.defense: run for run in runs}
    gallery = {name: gallery_of(first[name], data, images) for name in shown} if data else None
    write_report(results, path, figures=figures, gallery=gallery, notes=notes)


def gallery_of(run: Run, data: Data, images: int = 3) -> list[GalleryRow]:
    """Return test images, one class after the other, attacked in each norm and with learned noise."""
    model = load_model(run, data)
    chosen = _one_of_each_class(data, images)
    x, y = data.test.floats(chosen), data.test.labels[chosen]
    threats = threats_from(run.recipe.threats)
    suite = build_suite("quick", threats, run.recipe.evaluation.attack)
    versions = {"clean": x} | {
        _title(named): _attacked(model, named, x, y) for named in suite.attacks
    }
    defense = load_defense(run, data)
    if isinstance(defense, MNGAC):
        noise = torch.Generator().manual_seed(run.seed)
        versions["learned noise"] = defense.augment(x, threats["l2"], noise)
    answers = {title: _answer(model, version) for title, version in versions.items()}
    return [
        GalleryRow(
            f"test image {int(index)}, {data.class_names[int(y[row])]}",
            [
                GalleryCell(
                    title=title,
                    image=_pixels(versions[title][row]),
                    prediction=data.class_names[int(answers[title][0][row])],
                    correct=bool(answers[title][0][row] == y[row]),
                    confidence=float(answers[title][1][row]),
                )
                for title in versions
            ],
        )
        for row, index in enumerate(chosen)
    ]


def _title(named: NamedAttack) -> str:
    return named.threat.norm


def _attacked(model: nn.Module, named: NamedAttack, x: Tensor, y: Tensor) -> Tensor:
    return named.attack(model, x, y, generator=torch.Generator().manual_seed(0))


def _one_of_each_class(data: Data, images: int) -> Tensor:
    """Return the first test image of each of the first classes."""
    labels = data.test.labels
    firsts = [(labels == label).nonzero()[:1].squeeze(1) for label in range(data.classes)]
    return torch.cat(firsts)[:images]


@torch.no_grad()
def _answer(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    confidence, prediction = model(x).softmax(dim=1).max(dim=1)
    return prediction, confidence


def _pixels(image: Tensor):
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
