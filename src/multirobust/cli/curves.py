"""The command that measures accuracy against radius."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multirobust.cli.common import LimitOption, SetOption, tell
from multirobust.cli.evaluating import (
    ArgumentOption,
    ClassesOption,
    DataOption,
    FolderOption,
    ModelOption,
    RunArguments,
    SizeOption,
    ThreatsOption,
    WeightsOption,
    check_sources,
    names_in,
)
from multirobust.errors import DataError

if TYPE_CHECKING:
    from multirobust.cli.curve_sources import Source
    from multirobust.config import Recipe
    from multirobust.evaluation import EvaluationDisplay
    from multirobust.evaluation.curves import Curves

__all__ = ["curve"]

SHARES = {"half": 0.5, "benchmark": 1.0, "double": 2.0}
"""Of the benchmark radius, the columns of the printed tables."""


def curve(
    runs: RunArguments = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    model_arg: ArgumentOption = None,
    data: DataOption = None,
    data_folder: FolderOption = None,
    image_size: SizeOption = None,
    class_names: ClassesOption = None,
    threats: ThreatsOption = None,
    limit: LimitOption = None,
    iterations: Annotated[
        int, typer.Option(min=6, help="Forward-backward passes of each run of an attack.")
    ] = 50,
    targets: Annotated[
        int, typer.Option(min=0, help="Wrong classes that the targeted attack goes for.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the attacks' random starts.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder of the figure and its numbers.")] = Path(
        "curves"
    ),
    overrides: SetOption = None,
) -> None:
    """Measure accuracy against radius in each norm, and draw it.

    What is found is kept in each run's folder, or with --model below --output, and read back the
    next time. Killed at any point, the same command goes on where it stopped. Writes curves.png and
    curves.json.

    Example: multirobust curve runs/digits --limit 200 --output curves

    Example: multirobust curve --model mine.py:make --weights mine.safetensors --data cifar10
    """
    from multirobust.cli.curve_sources import ModelSource, run_sources
    from multirobust.evaluation.curve_attacks import CurveAttacks
    from multirobust.experiment.runs import make_folder
    from multirobust.models.external import model_arguments

    of_models = {"--weights": weights, "--model-arg": model_arg, "--data": data}
    form = {"--image-size": image_size, "--class-names": class_names}
    check_sources(runs, model, data, of_models | form)
    chosen = {"evaluation.limit": limit, "threats.preset": threats}
    extra = [f"{name}={value}" for name, value in chosen.items() if value is not None]
    attack, changes = CurveAttacks(iterations=iterations, targets=targets), overrides or []
    if model is None:
        folder = [f"data.folder={data_folder!r}"] if data_folder is not None else []
        sources: Sequence[Source] = run_sources(runs or [], [*extra, *folder], changes)
    else:
        assert data is not None
        sources = [
            ModelSource(
                model=model,
                weights=str(weights) if weights else None,
                options=model_arguments(model_arg or []),
                data=data,
                data_folder=data_folder,
                size=image_size,
                class_names=names_in(class_names),
                overrides=(*extra, *changes),
                output=output,
            )
        ]
    make_folder(output)
    found = _found(sources, attack, seed)
    _write(found, output)
    typer.echo(_tables(found))
    typer.echo(f"Curves: {output / 'curves.png'}, {output / 'curves.json'}")


def _found(sources: Sequence[Source], attack: Any, seed: int) -> dict[str, Curves]:
    """Return the curves of each model by its name."""
    from multirobust.evaluation import shown

    found: dict[str, Curves] = {}
    for source in sources:
        with shown(source.name, tell) as (display, print_line):

            def report(
                line: str, to: Callable[[str], None] = print_line, name: str = source.name
            ) -> None:
                to(f"{name}: {line}")

            name = source.name if source.name not in found else source.other_name
            found[name] = _curves_of(source, attack, seed, report, display)
    return found


def _curves_of(
    source: Source,
    attack: Any,
    seed: int,
    report: Callable[[str], None],
    display: EvaluationDisplay,
) -> Curves:
    """Return the curves of a model, computed or as they are kept."""
    from multirobust.attacks import threats_from
    from multirobust.evaluation.curve_run import robustness_curve
    from multirobust.evaluation.curves import save_curves
    from multirobust.training import choose_device
    from multirobust.training.run_folder import exclusive

    recipe = source.recipe()
    threats, config = threats_from(recipe.threats), recipe.evaluation
    settings = _settings(recipe, attack, seed)
    manifest, folder = source.facts(settings), source.folder(_digest(settings))
    known = _known(folder, manifest, report)
    if known is not None:
        return known
    device = choose_device(recipe.training.device)
    model, images = source.load()
    with exclusive(folder, doing="computes curves"):
        return robustness_curve(
            model.to(device),
            images,
            threats,
            attack=attack,
            batch_size=config.batch_size,
            block_size=config.block_size,
            limit=config.limit,
            seed=seed,
            device=device,
            manifest=manifest,
            partial=folder / "partial",
            report=report,
            display=display,
            keep=lambda curves: save_curves(curves, folder),
        )


def _settings(recipe: Recipe, attack: Any, seed: int) -> dict[str, Any]:
    """Return what decides the curves of a given model, as JSON values."""
    from multirobust.attacks import threats_from
    from multirobust.evaluation.curve_run import MULTIPLES

    config = recipe.evaluation
    return {
        "attack": repr(attack),
        "multiples": list(MULTIPLES),
        "threats": {norm: repr(t) for norm, t in threats_from(recipe.threats).items()},
        "limit": config.limit,
        "test_limit": recipe.data.test_limit,
        "batch_size": config.batch_size,
        "block_size": config.block_size,
        "seed": seed,
    }


def _digest(settings: Mapping[str, Any]) -> str:
    """Return eight letters that other settings do not have."""
    import hashlib
    import json

    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _known(
    folder: Path, manifest: Mapping[str, Any], report: Callable[[str], None]
) -> Curves | None:
    """Return stored curves of the same weights, data and settings, if there are any."""
    from multirobust.evaluation.curves import load_curves
    from multirobust.evaluation.storage import MANIFEST

    if not (folder / MANIFEST).is_file():
        return None
    try:
        known = load_curves(folder)
    except DataError as error:
        report(f"computed again, since the stored curves cannot be used: {error}")
        return None
    if any(
        known.manifest.get(fact) != manifest[fact] for fact in ("data", "weights", "evaluation")
    ):
        return None
    report("already computed with these settings")
    return known


def _write(found: Mapping[str, Curves], output: Path) -> None:
    from multirobust.analysis import curves_figure
    from multirobust.experiment.robustness import curve_panels
    from multirobust.experiment.runs import to_json
    from multirobust.files import atomic_write_together

    numbers = {
        "format": "multirobust curves",
        "version": 1,
        "models": {name: _numbers(curves) for name, curves in found.items()},
    }
    drawn = curves_figure(curve_panels(found), form="png")
    files = [(output / "curves.png", drawn), (output / "curves.json", to_json(numbers))]
    atomic_write_together(files)


def _numbers(curves: Curves) -> dict[str, Any]:
    """Return what is drawn of a model, as JSON values."""
    norms = {}
    for norm in curves.norms:
        arrays = zip(("radius", "accuracy", "low", "high"), curves.points(norm), strict=True)
        norms[norm] = {
            "benchmark": curves.benchmark(norm),
            "attacked": list(curves.radii(norm)),
            **{name: array.tolist() for name, array in arrays},
        }
    return {"images": len(curves), "norms": norms, "manifest": curves.manifest}


def _tables(found: Mapping[str, Curves]) -> str:
    """Return a table for each norm: accuracy at multiples of the benchmark radius."""
    from multirobust.report import Cell, Column, Row, Table, text

    norms = list(dict.fromkeys(norm for curves in found.values() for norm in curves.norms))
    tables = []
    for norm in norms:
        having = {name: curves for name, curves in found.items() if norm in curves.norms}
        radius = next(iter(having.values())).benchmark(norm)
        columns = [Column("0", "clean")]
        columns += [Column(name, f"{radius * share:.4g}") for name, share in SHARES.items()]
        rows = []
        for name, curves in having.items():
            shown = [curves.accuracy(norm, radius * share) for share in (0, *SHARES.values())]
            parts = [str(estimate).partition(" ") for estimate in shown]
            rows.append(Row(name, tuple(Cell(number, detail) for number, _, detail in parts)))
        last = norm == norms[-1]
        notes = ("Accuracy in % at half, one and two benchmark radii; [95 % interval].",)
        tables.append(text(Table(tuple(columns), tuple(rows), notes if last else (), norm)))
    return "\n".join(table.strip("\n") + "\n" for table in tables)
