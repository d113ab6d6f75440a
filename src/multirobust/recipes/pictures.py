"""The paper's figures: what the analysis finds in trained models, drawn and as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multirobust.analysis import (
    decision_boundaries,
    decision_boundary,
    generated_noise,
    loss_surface,
    loss_surfaces,
    noise_gallery,
)
from multirobust.attacks import Attack, attacks_from, threats_from
from multirobust.data import Data
from multirobust.evaluation.intervals import mean_and_std
from multirobust.experiment import Run, load_defense, load_model
from multirobust.provenance import provenance
from multirobust.recipes.products import Product
from multirobust.recipes.progress import Progress
from multirobust.recipes.reproduction import RowOf
from multirobust.recipes.study import Study
from multirobust.report import Cell, Column, Row, Table

__all__ = ["boundary", "noise", "surfaces"]

SURFACE_IMAGES = 100
BOUNDARY_IMAGES = 60
"""Test images of the two classes together."""

NOISE_IMAGES, NOISE_ROWS = 100, 5

Numbers = Mapping[str, Mapping[str, Sequence[float]]]
"""For each row and each column, one number a seed."""


def surfaces(study: Study, progress: Progress) -> Product:
    """Draw the loss of each method along the steepest directions of each norm (Figures 3, 6).

    The drawing is of the first seed, the numbers of all.
    """
    rows = _trained_rows(study, progress)
    norms = list(threats_from(rows[0][1][0].recipe.threats))
    found: dict[str, dict[str, list[Any]]] = {norm: {} for norm in norms}
    for row, runs in rows:
        for run in runs:
            model, data = load_model(run, study.data(run)), study.data(run)
            x, y = _first(data, SURFACE_IMAGES)
            for norm, threat in threats_from(run.recipe.threats).items():
                surface = loss_surface(model, x, y, threat)
                found[norm].setdefault(row.name, []).append(surface)
        progress.tell(f"{row.name}: loss surfaces of {len(runs)} models")
    names = [row.name for row, _ in rows]
    numbers: Numbers = {
        f"{norm}: {key}": {name: [s.summary()[key] for s in found[norm][name]] for name in names}
        for norm in norms
        for key in ("center", "rise", "roughness")
    }
    notes = (
        f"Mean over the first {SURFACE_IMAGES} test images: loss of the images themselves "
        "(center, nats), what it gains at one radius along the steepest direction (rise), and the "
        "mean absolute second difference along both directions (roughness, nats per squared "
        "radius).",
    )
    panels = [[found[norm][name][0] for name in names] for norm in norms]
    return Product(
        title=study.reproduction.title,
        table=_statistics_table(numbers, names, notes, corner="attack"),
        svg=loss_surfaces(norms, names, panels),
        facts=_facts_of(study, rows, numbers),
        sentences=(study.reproduction.reading,),
    )


def boundary(study: Study, progress: Progress) -> Product:
    """Draw the boundary between two classes in the features of each method (Table 5).

    The drawing is of the first seed, the errors of all.
    """
    rows = _trained_rows(study, progress)
    pair = study.reproduction.classes[study.scale.data]
    drawn, numbers, fidelity = {}, {}, []
    for row, runs in rows:
        errors: dict[str, list[float]] = {}
        for run in runs:
            found = _boundary_of(run, study.data(run), pair, seed=run.seed)
            drawn.setdefault(row.name, found)
            fidelity.append(found.fidelity)
            for version, error in found.errors.items():
                errors.setdefault(version, []).append(100 * error)
        numbers[row.name] = errors
        progress.tell(f"{row.name}: decision boundaries of {len(runs)} models")
    columns = list(next(iter(numbers.values())))
    data = study.data(rows[0][1][0])
    classes = [data.class_names[label] for label in pair]
    notes = (
        f"Share of test images of the classes {classes[0]} and {classes[1]} that the model takes "
        "for the other one, in percent; attacks between these two logits.",
        f"The background of the drawing agrees with the model on {100 * min(fidelity):.0f} % or "
        "more of the points.",
    )
    return Product(
        title=study.reproduction.title,
        table=_statistics_table(numbers, columns, notes),
        svg=decision_boundaries(drawn, names=data.class_names),
        facts=_facts_of(study, rows, numbers),
        sentences=(study.reproduction.reading,),
    )


def noise(study: Study, progress: Progress) -> Product:
    """Draw what the noise generator makes of some images (Figure 5), and measure it.

    The drawing is of the first seed, the numbers of all.
    """
    rows = _trained_rows(study, progress)
    ((row, runs),) = rows
    drawn, numbers = [], {}
    for run in runs:
        threats = threats_from(run.recipe.threats)
        x, _ = _first(study.data(run), NOISE_IMAGES)
        found = generated_noise(load_defense(run, study.data(run)), x, threats)
        drawn.append(found)
        for norm, part in found.augmented.items():
            kept = numbers.setdefault(norm, {"of the radius": [], "live gradient": []})
            kept["of the radius"].append(100 * part.used)
            kept["live gradient"].append(100 * part.live)
    dependence = [100 * found.dependence for found in drawn]
    progress.tell(f"{row.name}: noise of {len(runs)} generators")
    notes = (
        f"Over the first {NOISE_IMAGES} test images, in percent: how much of the ball's radius the "
        "projected noise uses, and through how many of the generator's outputs a gradient passes "
        "the projection.",
        f"Of the variance of the noise, {', '.join(map(_short, dependence))} % is due to the image "
        "(by seed); the rest is due to z.",
    )
    columns = ["of the radius", "live gradient"]
    facts = _facts_of(study, rows, numbers) | {"due to the image": dependence}
    return Product(
        title=study.reproduction.title,
        table=_statistics_table(numbers, columns, notes, corner="threat"),
        svg=noise_gallery(drawn[0], rows=NOISE_ROWS, name=row.name),
        facts=facts,
        sentences=(study.reproduction.reading,),
    )


def _trained_rows(study: Study, progress: Progress) -> list[tuple[RowOf, list[Run]]]:
    """Return the rows of a study with their trained runs."""
    rows = [(row, study.runs(row)) for row in study.rows]
    in_turn = [run for of_seed in zip(*(runs for _, runs in rows), strict=True) for run in of_seed]
    study.train(in_turn, progress)
    return rows


def _statistics_table(
    numbers: Numbers, columns: Sequence[str], notes: Sequence[str], *, corner: str = "defense"
) -> Table:
    """Return a table of means with their sample standard deviations over seeds."""

    def cells(row: Mapping[str, Sequence[float]]) -> Iterator[Cell]:
        for column in columns:
            mean, std = mean_and_std(list(row[column]))
            yield Cell(_short(mean), "" if std is None else f"± {_short(std)}", mean)

    body = tuple(Row(name, tuple(cells(row))) for name, row in numbers.items())
    seeds = max(len(values) for row in numbers.values() for values in row.values())
    spread = (f"±: sample standard deviation over {seeds} seeds.",) if seeds > 1 else ()
    return Table(tuple(Column(c, c) for c in columns), body, (*notes, *spread), corner=corner)


def _facts_of(
    study: Study, rows: Sequence[tuple[RowOf, list[Run]]], numbers: Numbers
) -> dict[str, Any]:
    """Return what a figure's file holds: its numbers, and what they were made from."""
    recipe = rows[0][1][0].recipe.model_dump(mode="json", exclude_none=True)
    recipe.get("data", {}).pop("folder", None)
    return {
        "seeds": list(study.seeds),
        "recipe": recipe,
        **provenance(),
        "numbers": {name: dict(row) for name, row in numbers.items()},
    }


def _first(data: Data, count: int) -> tuple[Tensor, Tensor]:
    chosen = data.test.first(min(count, len(data.test)))
    return chosen.floats(), chosen.labels


def _boundary_of(run: Run, data: Data, classes: tuple[int, int], *, seed: int) -> Any:
    model: nn.Module = load_model(run, data)
    of_two = (data.test.labels == classes[0]) | (data.test.labels == classes[1])
    chosen = of_two.nonzero().flatten()[:BOUNDARY_IMAGES]
    threats = threats_from(run.recipe.threats)
    attacks: dict[str, Attack] = {**attacks_from(run.recipe.evaluation.attack, threats)}
    return decision_boundary(
        model,
        data.test.floats(chosen),
        data.test.labels[chosen],
        attacks,
        classes=classes,
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
    )


def _short(number: float) -> str:
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
