"""The commands that attack models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from multirobust.cli.common import SetOption, SuiteOption, tell
from multirobust.cli.engines import (
    AddressOption,
    CpusOption,
    EngineOption,
    GpusOption,
    RetriesOption,
    engine_of,
)
from multirobust.errors import InputError

if TYPE_CHECKING:
    from multirobust.experiment.attacking import Elsewhere
    from multirobust.sweep import Engine

__all__ = ["check_sources", "evaluate", "merge", "names_in"]

RunArguments = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RUN...", help="Run folders, or folders of them; or use --model."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Any classifier: package.module:function, file.py:function, a run folder, "
        "hf:owner/name, robustbench:NAME, or a name of `multirobust list models`.",
    ),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="Of --model: a .safetensors, .pt or .pth file.")
]
ArgumentOption = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="name=value", help="For the function of --model."),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="For --model: a data set, a folder of images, or an .npz file."),
]
FolderOption = Annotated[
    str | None, typer.Option("--data-folder", help="Where the files of the data set lie.")
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        min=1,
        help="Of a folder as --data: scale and crop the images to so many pixels.",
    ),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        metavar="A,B,...",
        help="Of a folder as --data: its subfolders in the order of the model's classes, separated "
        "by commas; default: sorted.",
    ),
]
ThreatsOption = Annotated[
    str | None, typer.Option("--threats", help="Radii by name; see `multirobust list threats`.")
]
ModeOption = Annotated[
    Literal["auto", "breakdown", "per_threat", "cascade"] | None,
    typer.Option(
        "--mode",
        help="An attack sees all images, what its threat's earlier attacks left, or what all left.",
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use only the first test images.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the attacks' random starts.")]
ShardOption = Annotated[
    str | None, typer.Option("--shard", metavar="i/n", help="Only a part of the images; see merge.")
]
ImagesOption = Annotated[
    bool, typer.Option("--save-images", help="Also keep the adversarial images.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Make every finding of the audit an error.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="With --model: the folder of the outcomes.")
]


def evaluate(
    runs: RunArguments = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    model_arg: ArgumentOption = None,
    data: DataOption = None,
    data_folder: FolderOption = None,
    image_size: SizeOption = None,
    class_names: ClassesOption = None,
    suite: SuiteOption = None,
    mode: ModeOption = None,
    threats: ThreatsOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    shard: ShardOption = None,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Of runs.")] = "test",
    save_images: ImagesOption = False,
    strict: StrictOption = False,
    output: OutputOption = None,
    overrides: SetOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    retries: RetriesOption = 2,
) -> None:
    """Attack trained models, ours or any other, and keep what happened to every image.

    Killed at any point, the same command goes on where it stopped. --set changes how the models
    are attacked, such as evaluation.attack.restarts or threats.linf. Of a run, an evaluation other
    than its recipe's own is kept beside it.

    Example: multirobust evaluate runs/digits/sat-s0 --suite autoattack --limit 100

    Example: multirobust evaluate --model mine.py:make --weights mine.safetensors --data cifar10
    """
    from multirobust.evaluation import Shard

    chosen = {
        "evaluation.suite": suite,
        "evaluation.mode": mode,
        "evaluation.limit": limit,
        "threats.preset": threats,
    }
    extra = [f"{name}={value}" for name, value in chosen.items() if value is not None]
    options = {
        "overrides": [*extra, *(overrides or [])],
        "seed": seed,
        "shard": Shard.parse(shard) if shard else None,
        "save_images": save_images,
        "strict": strict,
    }
    of_models = {
        "--weights": weights,
        "--model-arg": model_arg,
        "--data": data,
        "--image-size": image_size,
        "--class-names": class_names,
        "--output": output,
    }
    if model is not None:
        validation = {"--split validation": split != "test"}
        _check_absent(validation, "belongs to runs; leave it out, --data names the images")
    check_sources(runs, model, data, of_models)
    place = engine_of(engine, address=address, cpus=cpus, gpus=gpus, retries=retries)
    with _at(place) as options["elsewhere"]:
        if model is None:
            _evaluate_runs(runs, split, data_folder, options)
        else:
            assert data is not None
            options |= {"size": image_size, "class_names": names_in(class_names)}
            _evaluate_model(model, data, weights, model_arg, data_folder, output, options)


def merge(
    shards: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of outcomes, one a shard.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder of the joined outcomes.")],
) -> None:
    """Join the shards of one evaluation, after a check that they belong together.

    Example: multirobust merge runs/x/sat-s0/evaluation/autoattack-*of4 --output \
    runs/x/sat-s0/evaluation/autoattack
    """
    from multirobust.evaluation import load, save
    from multirobust.evaluation import merge as joined

    outcomes = joined([load(folder) for folder in shards])
    save(outcomes, output)
    typer.echo(str(outcomes))
    typer.echo(f"Outcomes: {output}")


@contextlib.contextmanager
def _at(engine: Engine) -> Iterator[Elsewhere | None]:
    """Yield what does parts of evaluations elsewhere, None where all is done in this process."""
    from multirobust.sweep import LocalEngine, evaluating_on
    from multirobust.training import stop_on_interrupt

    with engine.open():
        if isinstance(engine, LocalEngine):
            yield None
            return
        with stop_on_interrupt() as stop:
            yield evaluating_on(engine, tell=tell, stop=stop)


def _evaluate_runs(
    runs: list[Path] | None, split: str, data_folder: str | None, options: dict
) -> None:
    from multirobust.experiment import evaluate_all, find_runs

    if data_folder is not None:
        options["overrides"].append(f"data.folder={data_folder!r}")
    evaluate_all(find_runs(runs or []), split=split, tell=tell, **options)


def _evaluate_model(
    model: str,
    data: str,
    weights: Path | None,
    model_arg: list[str] | None,
    data_folder: str | None,
    output: Path | None,
    options: dict,
) -> None:
    from multirobust.evaluation import shown
    from multirobust.experiment import evaluate_external
    from multirobust.models.external import model_arguments

    with shown(Path(model).name, tell) as (display, report):
        outcomes, folder = evaluate_external(
            model,
            data,
            weights=str(weights) if weights else None,
            options=model_arguments(model_arg or []),
            data_folder=data_folder,
            output=output,
            report=report,
            display=display,
            **options,
        )
    typer.echo(str(outcomes))
    typer.echo(f"Outcomes: {folder}")


def names_in(text: str | None) -> tuple[str, ...] | None:
    """Return the class names of an option, None if it is not given.

    Raises:
        InputError: If a name is empty or stands twice.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise InputError(
            f"--class-names: must be different names separated by commas, got {text!r}; write "
            "them as in cat,dog,horse."
        )
    return names


def check_sources(
    runs: list[Path] | None, model: str | None, data: str | None, of_models: Mapping[str, object]
) -> None:
    """Raise unless there are runs, or a model and images, and no option of the other.

    Args:
        runs: The arguments.
        model: The option --model.
        data: The option --data.
        of_models: Options that belong to --model, by name.
    """
    if model is None:
        _check_absent(of_models, "belongs to --model, which is not given; leave it out, or add it")
        if not runs:
            raise InputError("RUN: give run folders, or any classifier with --model.")
        return
    _check_absent({"RUN": runs}, "and --model exclude each other; leave one of them out")
    if data is None:
        raise InputError("--data: --model needs images to classify, got none; try digits.")


def _check_absent(values: Mapping[str, object], why: str) -> None:
    for name, value in values.items():
        if value:
            raise InputError(f"{name} {why}.")
