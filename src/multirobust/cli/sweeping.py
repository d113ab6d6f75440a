"""The command that trains and attacks many models at once."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from multirobust.cli.common import (
    DefenseOption,
    LimitOption,
    OutputOption,
    RecipeArgument,
    SetOption,
    SuiteOption,
    tell,
)
from multirobust.cli.engines import (
    AddressOption,
    CpusOption,
    EngineOption,
    GpusOption,
    RetriesOption,
    engine_of,
)

__all__ = ["sweep"]


def sweep(
    recipe: RecipeArgument,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many: 0, 1, ...; default the recipe's.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="a.b=1,2,3", help="Try each value; several make all combinations."
        ),
    ] = None,
    defense: DefenseOption = None,
    overrides: SetOption = None,
    suite: SuiteOption = None,
    limit: LimitOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    cpus: CpusOption = 1,
    gpus: GpusOption = None,
    retries: RetriesOption = 2,
    output: OutputOption = None,
) -> None:
    """Train and attack all runs of a recipe, many at once with Ray, and compare them in one table.

    What is finished stays, what was interrupted or failed goes on by the same command; the table
    does not depend on the engine.

    Example: multirobust sweep digits --seeds 3 --grid defense.beta=4.0,12.0 --engine ray
    """
    from multirobust.sweep import Session, Sweep
    from multirobust.training import display_for, stop_on_interrupt

    chosen = {
        "defenses": repr(list(defense)) if defense else None,
        "seeds": repr(list(range(seeds))) if seeds else None,
        "evaluation.suite": suite,
        "evaluation.limit": limit,
    }
    many = Sweep(
        recipe=recipe,
        output=output or Path("runs") / Path(recipe).stem,
        overrides=(
            *(overrides or ()),
            *(f"{name}={value}" for name, value in chosen.items() if value is not None),
        ),
        grid=tuple(grid or ()),
    )
    place = engine_of(engine, address=address, cpus=cpus, gpus=gpus, retries=retries)
    with stop_on_interrupt() as stop:
        found = many.run(place, Session(tell=tell, stop=stop, display=display_for))
    if found.results:
        typer.echo(str(found))
        command = shlex.join(["multirobust", *sys.argv[1:]])
        for path in found.write(many.output, command=command):
            tell(f"wrote {path}")
    found.check()
