"""Seconds and memory of one training step of each defense, beside the bare passes that it needs.

    python benchmarks/gpu/step_time.py --minutes 20 --output results/step_time.json

Works through models x precisions x defenses on random images and writes the file after each case.
When the minutes are over it exits with 75; the same command goes on with the cases that are
missing. See benchmarks/README.md for how to read the numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from passes import Needs, Times, arms_of, held, measure, rotate
from slices import AGAIN, DONE, Deadline, read, write

from multirobust import catalog, defenses
from multirobust.config import Recipe, load_recipe
from multirobust.data import CropFlip, Data, Split
from multirobust.errors import InputError, MultirobustError, RunError
from multirobust.experiment import build_model
from multirobust.provenance import device_name, provenance
from multirobust.training import choose_device
from multirobust.training.loop import Job, Loop

PRECISIONS = {
    "float32": ("32-true", False),
    "tf32": ("32-true", True),
    "bf16": ("bf16-mixed", False),
}
"""Name of a precision, to that of the training and whether float32 products may round to TF32."""

CLASSES = 10
EPOCHS = 1000
"""Length of the pretended training: so long that no step leaves the foot of the schedule."""


MOST_WARM_ROUNDS = 3


class Case(NamedTuple):
    """What is timed."""

    model: str
    precision: str
    defense: str


def main(arguments: list[str] | None = None) -> int:
    """Time the cases that the output file lacks; return 0 if none is left, 75 otherwise."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options, Deadline(options.minutes))
    except MultirobustError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _run(options: argparse.Namespace, deadline: Deadline) -> int:
    device = choose_device(options.device)
    result = _opened(options, device)
    done = {Case(case["model"], case["precision"], case["defense"]) for case in result["cases"]}
    missing = [case for case in _wanted(options, device) if case not in done]
    print(f"{device_name(device)}: {len(missing)} cases to time, {len(done)} in {options.output}")
    if not missing:
        print("done: nothing is left to time")
        return DONE
    result["slices"].append({"arguments": _plain(options), **provenance(device)})
    for count, case in enumerate(missing):
        facts = None if deadline.lap() else _facts(case, options, device, deadline)
        if facts is None:
            left = len(missing) - count
            print(f"time is over, {left} cases are left: call the same command again")
            return AGAIN
        facts["slice"] = len(result["slices"]) - 1
        result["cases"].append(facts)
        write(options.output, result)
        print(_line(facts))
    print(f"done: all cases are in {options.output}")
    return DONE


def _opened(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the results so far, if they were measured under the same settings."""
    settings = {
        "device": device_name(device),
        "batch": options.batch,
        "size": options.size,
        "recipe": options.recipe,
        "set": options.set,
    }
    there = read(options.output)
    if there is None:
        return {"benchmark": "step_time", "settings": settings, "slices": [], "cases": []}
    if there.get("benchmark") != "step_time" or there.get("settings") != settings:
        raise RunError(
            f"{options.output} holds results of other settings ({there.get('settings')} there, "
            f"{settings} here), which do not compare; choose another --output."
        )
    return there


def _wanted(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    precisions = list(options.precisions)
    if "tf32" in precisions and device.type != "cuda":
        print("tf32 is skipped: only a CUDA device has it")
        precisions.remove("tf32")
    return itertools.starmap(Case, itertools.product(options.models, precisions, options.defenses))


def _facts(
    case: Case, options: argparse.Namespace, device: torch.device, deadline: Deadline
) -> dict[str, Any] | None:
    """Return what was measured, or why it could not be; None if time ran out."""
    tf32 = PRECISIONS[case.precision][1]
    backends = torch.backends
    try:
        with held(backends.cudnn, allow_tf32=tf32), held(backends.cuda.matmul, allow_tf32=tf32):
            loop = loop_of(case, options)
            times = measure(loop, repeats=options.repeats, passes=options.passes, deadline=deadline)
    except torch.OutOfMemoryError:
        return {**case._asdict(), "error": "out of memory"}
    except MultirobustError as error:
        return {**case._asdict(), "error": str(error)}
    finally:
        loop = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return _described(case, times, options.batch) if times.steps else None


def loop_of(
    case: Case, options: argparse.Namespace, defense: defenses.Defense[Any] | None = None
) -> Loop:
    """Return a training of random images that keeps nothing.

    Args:
        case: What is timed.
        options: recipe, set, repeats, batch, size and device count.
        defense: In place of the one that the case names.
    """
    recipe = load_recipe(options.recipe, [*options.set, f"model.name={case.model}"])
    defense = defense or defenses.build(case.defense, recipe, channels=3)
    rotate(defense)
    steps = (options.repeats + MOST_WARM_ROUNDS) * (len(arms_of(defense)) + 1)
    data = _random_data((steps + 1) * options.batch, options.size)
    return Loop(
        Job(
            build_model(recipe, data, seed=0),
            data,
            defense,
            _config(recipe, case, options),
            seed=0,
            batch_norm=defenses.batch_norm_during(case.defense, recipe),
            folder=None,
        )
    )


def _config(recipe: Recipe, case: Case, options: argparse.Namespace) -> Any:
    """The recipe's training, with nothing between two steps that would wait for the device."""
    return recipe.training.model_copy(
        update={
            "device": options.device,
            "precision": PRECISIONS[case.precision][0],
            "batch_size": options.batch,
            "epochs": EPOCHS,
            "log_steps": sys.maxsize,
            "checkpoint_seconds": float(sys.maxsize),
        }
    )


def _random_data(images: int, size: int) -> Data:
    """Enough images that no epoch ends between two timed steps."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, size, size), generator=draw, dtype=torch.uint8)
    split = Split(pixels, torch.arange(images) % CLASSES)
    return Data(
        "random",
        split,
        split.first(CLASSES),
        class_names=tuple(map(str, range(CLASSES))),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augmentation=CropFlip(),
    )


def _described(case: Case, times: Times, batch: int) -> dict[str, Any]:
    needs = Needs.of(case.defense, times.forwards, times.backwards)
    seconds, bare, autotuned = times.step(), _medians(times.bare), _medians(times.autotuned)
    limit = needs.limit(bare)
    tuned_limit = needs.limit(autotuned) if autotuned else None
    return {
        **case._asdict(),
        "seconds": seconds,
        "seconds_by_attack": {name: s for name, s in times.by_arm().items() if name},
        "images_per_second": batch / seconds,
        "peak_bytes": times.peak_bytes,
        "forwards": needs.forwards,
        "backwards": needs.backwards,
        "of_which": {
            "training": needs.training,
            "input_gradient": needs.input_gradients,
            "second_order": needs.second_order,
            "forward_only": needs.forwards_only,
        },
        "bare_seconds": bare,
        "limit_seconds": limit,
        "ratio": seconds / limit,
        "autotuned_bare_seconds": autotuned or None,
        "autotuned_limit_seconds": tuned_limit,
        "autotuned_ratio": seconds / tuned_limit if tuned_limit else None,
        "repeats": len(times.steps),
    }


def _medians(rounds: Iterable[dict[str, float]]) -> dict[str, float]:
    rounds = list(rounds)
    names = rounds[0] if rounds else ()
    return {name: statistics.median(entry[name] for entry in rounds) for name in names}


def _line(facts: dict[str, Any]) -> str:
    name = f"{facts['model']:<17} {facts['precision']:<8} {facts['defense']:<9}"
    if "error" in facts:
        return f"{name} {facts['error']}"
    peak = facts["peak_bytes"]
    memory = f"{peak / 2**30:6.2f} GiB" if peak else ""
    return (
        f"{name} {facts['seconds']:9.4f} s  {facts['images_per_second']:8.0f} images/s  "
        f"{facts['forwards']:5.1f} F {facts['backwards']:5.1f} B  "
        f"{facts['ratio']:5.2f} x limit  {memory}".rstrip()
    )


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {**vars(options), "output": str(options.output)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    models = ["preact_resnet_18", "wrn_28_10"]
    add("--models", nargs="+", choices=list(catalog.MODELS), default=models, metavar="NAME")
    add("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    add(
        "--defenses",
        nargs="+",
        choices=list(catalog.DEFENSES),
        default=list(catalog.DEFENSES),
        metavar="NAME",
    )
    add("--batch", type=int, default=128, help="images a step")
    add("--size", type=int, default=32, help="height and width of the images")
    add("--repeats", type=int, default=5, help="rounds of which the medians are taken")
    add("--passes", type=int, default=5, help="bare passes of each kind in a round")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--recipe", default="cifar10", help="gives attacks, radii and hyper-parameters")
    add("--set", action="append", default=[], metavar="a.b=c", help="change a field of the recipe")
    add("--minutes", type=float, help="stop before so many minutes are over; default: never")
    add("--output", type=Path, default=Path("step_time.json"), help="JSON file, also read to go on")
    return parser


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
