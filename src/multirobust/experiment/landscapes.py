"""The parts of the report that attack models anew: loss surfaces and decision boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from multirobust.analysis.boundary import decision_boundary
from multirobust.analysis.plots_boundary import decision_boundaries
from multirobust.analysis.plots_surfaces import loss_surfaces
from multirobust.analysis.surfaces import Surface, loss_surface
from multirobust.attacks import threats_from
from multirobust.data import Data
from multirobust.experiment.building import load_model
from multirobust.experiment.gallery import attacks_shown
from multirobust.experiment.runs import Run
from multirobust.report import Cell, Column, Figure, Row, Section, Table, number_table

__all__ = ["landscape_sections"]

IMAGES, POINTS = 32, 21
"""Test images of a surface, and positions on each of its axes."""
OF_EACH_CLASS, ASKED = 30, 500
"""Test images of each class of a boundary, and those asked which two classes it divides."""


def landscape_sections(runs: Sequence[Run], data: Data) -> list[Section]:
    """Return the parts on loss surfaces and decision boundaries.

    Args:
        runs: Trained on these data with the same radii, one for each defense.
        data: Their data; of the test images the first ones are used.
    """
    models = {run.defense: load_model(run, data) for run in runs}
    return [_surfaces(runs[0], models, data), _boundaries(runs[0], models, data)]


def _surfaces(run: Run, models: dict[str, nn.Module], data: Data) -> Section:
    images = min(IMAGES, len(data.test))
    x, y = data.test.floats(slice(0, images)), data.test.labels[:images]
    found = {
        norm: [loss_surface(model, x, y, threat, points=POINTS) for model in models.values()]
        for norm, threat in threats_from(run.recipe.threats).items()
    }
    names = list(models)
    caption = (
        "The cross marks the images themselves. One step on an axis is the radius of the norm; "
        "the axes are the direction of steepest ascent at the image, and the one orthogonal to it "
        "at the end of the first."
    )
    svg = loss_surfaces(list(found), names, list(found.values()))
    figure = Figure("Loss around the images", caption, svg, _table(names, found))
    text = (
        f"Mean cross-entropy over {images} test images on planes through each of them. A flat "
        "plane is what robust training is after; a low but rough one hides attacks from gradients."
    )
    return Section("Loss surfaces", text, (figure,))


def _boundaries(run: Run, models: dict[str, nn.Module], data: Data) -> Section:
    classes = _alike(list(models.values()), data)
    labels = data.test.labels
    chosen = torch.cat([(labels == c).nonzero()[:OF_EACH_CLASS, 0] for c in classes])
    x, y, attacks = data.test.floats(chosen), labels[chosen], attacks_shown(run)
    found = {
        name: decision_boundary(model, x, y, attacks, classes=classes)
        for name, model in models.items()
    }
    called = [data.class_names[label] for label in classes]
    versions = next(iter(found.values())).versions
    errors = np.array([[each.errors[name] for name in versions] for each in found.values()])
    caption = (
        "Points: penultimate features in two dimensions (t-SNE), filled where the model errs. "
        "Background: the side that the points nearby are on; the fidelity says how far it can be "
        "trusted. The errors above the panels are exact."
    )
    svg = decision_boundaries(found, names=data.class_names)
    table = number_table(list(models), list(versions), errors)
    note = ("Share of images on the wrong side, in percent.",)
    figure = Figure("Features of two classes", caption, svg, replace(table, notes=note))
    text = (
        f"The models as classifiers between {called[0]} and {called[1]}, the two classes that "
        f"they take for each other most, on {len(chosen)} test images, clean and attacked."
    )
    return Section("Decision boundary", text, (figure,))


@torch.no_grad()
def _alike(models: Sequence[nn.Module], data: Data) -> tuple[int, int]:
    """Return the two classes, ascending, that share most probability on clean test images."""
    x, labels = data.test.floats(slice(0, ASKED)), data.test.labels[:ASKED]
    count = len(data.class_names)
    shares = torch.stack([model(x).softmax(dim=1).double() for model in models]).sum(0)
    given = torch.zeros(count, count, dtype=torch.float64).index_add_(0, labels, shares)
    given = given / labels.bincount(minlength=count).clamp(min=1)[:, None]
    both = (given + given.T).triu(1)
    present = labels.bincount(minlength=count) > 0
    both[~(present[:, None] & present)] = -1
    first, second = divmod(int(both.argmax()), count)
    return first, second


def _table(names: Sequence[str], found: dict[str, list[Surface]]) -> Table:
    facts = ("center", "greatest", "roughness")
    columns = [Column(f"{norm} {fact}", f"{norm} {fact}", True) for norm in found for fact in facts]
    rows = []
    for place, name in enumerate(names):
        numbers = [found[norm][place].summary()[fact] for norm in found for fact in facts]
        rows.append(Row(name, tuple(Cell(f"{number:.3g}", value=number) for number in numbers)))
    note = (
        "Center and greatest: mean loss in nats at the images and at most on the plane. Roughness: "
        "mean absolute second difference, nats per squared radius."
    )
    return Table(tuple(columns), tuple(rows), (note,))
