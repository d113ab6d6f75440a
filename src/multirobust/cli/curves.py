"""The command that measures accuracy against radius."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multirobust.cli.common import LimitOption, RunsArgument, SetOption, tell
from multirobust.errors import DataError, InputError

if TYPE_CHECKING:
    from multirobust.config import Recipe
    from multirobust.evaluation import EvaluationDisplay
    from multirobust.evaluation.curves import Curves
    from multirobust.experiment import Run

__all__ = ["curve"]

OVERRIDABLE = ("evaluation.", "threats.", "data.folder", "data.test_limit", "training.device")
SHARES = {"half": 0.5, "benchmark": 1.0, "double": 2.0}
"""Of the benchmark radius, the columns of the printed tables."""


def curve(
    runs: RunsArgument,
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

    What is found is kept in each run's folder and read back the next time. Killed at any point,
    the same command goes on where it stopped. Writes curves.png and curves.json.

    Example: multirobust curve runs/digits --limit 200 --output curves
    """
    from multirobust.evaluation import shown
    from multirobust.evaluation.curve_attacks import CurveAttacks
    from multirobust.experiment import find_runs
    from multirobust.experiment.runs import make_folder

    _check_overrides(overrides or [])
    extra = [f"evaluation.limit={limit}"] if limit is not None else []
    attack = CurveAttacks(iterations=iterations, targets=targets)
    make_folder(output)
    found: dict[str, Curves] = {}
    for run, recipe in _with_recipes(find_runs(runs), [*extra, *(overrides or [])]):
        with shown(run.name, tell) as (display, print_line):

            def report(
                line: str, to: Callable[[str], None] = print_line, name: str = run.name
            ) -> None:
                to(f"{name}: {line}")

            name = run.name if run.name not in found else str(run.folder)
            found[name] = _curves_of(run, recipe, attack, seed, report, display)
    _write(found, output)
    typer.echo(_tables(found))
    typer.echo(f"Curves: {output / 'curves.png'}, {output / 'curves.json'}")


def _check_overrides(overrides: Sequence[str]) -> None:
    foreign = [text for text in overrides if not text.strip().startswith(OVERRIDABLE)]
    if foreign:
        raise InputError(
            f"--set {foreign[0]}: may change {', '.join(f'{name}*' for name in OVERRIDABLE)} only; "
            "the rest decided how the runs were trained."
        )


def _with_recipes(runs: Sequence[Run], overrides: Sequence[str]) -> list[tuple[Run, Recipe]]:
    """Return each run with how it is to be attacked, the same way for all."""
    from multirobust.attacks import threats_from
    from multirobust.config import load_recipe
    from multirobust.experiment.runs import RECIPE

    pairs = [
        (run, load_recipe(run.folder / RECIPE, overrides) if overrides else run.recipe)
        for run in runs
    ]
    first, *others = [(recipe.data.name, threats_from(recipe.threats)) for _, recipe in pairs]
    for (run, _), kind in zip(pairs[1:], others, strict=True):
        if kind != first:
            raise InputError(
                f"{run.folder} has other data or radii than {runs[0].folder}: one figure shows "
                "models on the same images at the same benchmark radii; give those runs alone, or "
                "set the radii with --set threats.preset=NAME."
            )
    return pairs


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


def _curves_of(
    run: Run,
    recipe: Recipe,
    attack: Any,
    seed: int,
    report: Callable[[str], None],
    display: EvaluationDisplay,
) -> Curves:
    """Return the curves of a run, computed or as kept in its folder."""
    from multirobust.attacks import threats_from
    from multirobust.evaluation.curve_run import robustness_curve
    from multirobust.evaluation.curves import save_curves
    from multirobust.experiment import load_data, load_model
    from multirobust.experiment.building import weights_digest
    from multirobust.training import choose_device
    from multirobust.training.run_folder import exclusive

    threats, config = threats_from(recipe.threats), recipe.evaluation
    settings = _settings(recipe, attack, seed)
    manifest = {
        "run": {"defense": run.defense, "training_seed": run.seed, "name": run.recipe.name},
        "data": recipe.data.name,
        "weights": weights_digest(run),
        "evaluation": settings,
        "recipe": run.recipe.model_dump(mode="json", exclude_none=True),
    }
    folder = run.folder / "evaluation" / "curves" / _name(settings)
    known = _known(folder, manifest, report)
    if known is not None:
        return known
    data, device = load_data(recipe.data), choose_device(recipe.training.device)
    with exclusive(folder, doing="computes curves"):
        return robustness_curve(
            load_model(run, data).to(device),
            data.test,
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


def _name(settings: Mapping[str, Any]) -> str:
    """Return the name of the folder of these settings."""
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
