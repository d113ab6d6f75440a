"""Where commands that do many things do them: options, and the engine that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from multirobust.errors import InputError

if TYPE_CHECKING:
    from multirobust.sweep import Engine

__all__ = [
    "AddressOption",
    "CpusOption",
    "EngineOption",
    "GpusOption",
    "RetriesOption",
    "engine_of",
]

EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="One after the other in this process, or workers of Ray."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", help="Of a running Ray cluster, such as auto; default: Ray on this machine."
    ),
]
CpusOption = Annotated[
    int | None,
    typer.Option("--cpus", min=1, help="CPUs, and so threads, of each of the tasks."),
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        "--gpus", min=0, help="GPUs of each of the tasks with Ray, such as 0.5; default: 1 if any."
    ),
]
RetriesOption = Annotated[
    int, typer.Option("--retries", min=0, help="How often what failed is begun again.")
]


def engine_of(
    name: str,
    *,
    address: str | None,
    cpus: int | None,
    gpus: float | None,
    retries: int,
) -> Engine:
    """Return the engine that the options of a command name.

    Raises:
        InputError: If an option belongs to another engine, or a value makes no sense.
    """
    from multirobust.sweep import LocalEngine, RayEngine

    if name == "ray":
        return RayEngine(address=address, cpus=cpus or 1, gpus=gpus, retries=retries)
    for option, value in (("--address", address), ("--gpus", gpus)):
        if value is not None:
            raise InputError(f"{option} belongs to --engine ray; leave it out, or add that.")
    return LocalEngine(cpus=cpus, retries=retries)
