"""Test images with their attacked versions, and what a model makes of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multirobust.attacks import Attack, Restarts, threats_from
from multirobust.data import Batch, Data
from multirobust.defenses import ANT, MNGAC, Defense
from multirobust.evaluation import build_suite
from multirobust.experiment.building import load_defense, load_model
from multirobust.experiment.runs import Run
from multirobust.report import GalleryCell, GalleryRow, amplified
from multirobust.threats import Threat

__all__ = ["attacks_shown", "gallery_of"]


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
        shown = _floats(versions[title][row])
        change, gain = amplified(shown, _floats(batch.x[row]))
        return GalleryCell(
            title=title,
            image=_pixels(versions[title][row]),
            prediction=data.class_names[int(prediction)],
            correct=bool(prediction == batch.y[row]),
            confidence=float(confidence),
            change=None if title == "clean" else change,
            gain=gain,
        )

    return [
        GalleryRow(
            f"test image {int(index)}, true class {data.class_names[int(batch.y[row])]}",
            [cell(title, row) for title in versions],
        )
        for row, index in enumerate(chosen)
    ]


def attacks_shown(run: Run) -> dict[str, Attack]:
    """Return an attack for each norm, with the recipe's settings.

    One start each: enough to show what it does, at half of the time.
    """
    suite = build_suite("quick", threats_from(run.recipe.threats), run.recipe.evaluation)
    return {
        named.threat.norm: named.attack.attack
        if isinstance(named.attack, Restarts)
        else named.attack
        for named in suite.attacks
        if isinstance(named.threat, Threat)
    }


def _versions(run: Run, defense: Defense[Any], model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    versions = {"clean": batch.x}
    for title, attack in attacks_shown(run).items():
        start = torch.Generator().manual_seed(0)
        versions[title] = attack(model, batch.x, batch.y, generator=start)
    noise = torch.Generator().manual_seed(run.seed)
    if isinstance(defense, MNGAC):
        ball = threats_from(run.recipe.threats)["l2"]
        versions["learned noise"] = defense.augment(batch.x, ball, noise)
    elif isinstance(defense, ANT):
        versions["learned noise"] = defense.craft(model, batch, generator=noise).detach()
    return versions


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


def _floats(image: Tensor) -> np.ndarray:
    return image.detach().permute(1, 2, 0).numpy()


def _pixels(image: Tensor) -> np.ndarray:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
