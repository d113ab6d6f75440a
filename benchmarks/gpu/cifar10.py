"""Train one defense on all of CIFAR-10, attack it in every norm, and write one JSON file.

    python benchmarks/gpu/cifar10.py --defense mng_ac --data DIR --output runs --minutes 25

Stops before the minutes are over and exits with 75; the same command goes on from its checkpoint
and exits with 0 when `<output>/<defense>-s<seed>.json` is written. DIR holds the official pickles
(`cifar-10-batches-py`); nothing is downloaded. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from slices import AGAIN, DONE, Deadline, read, write

from multirobust.config import Recipe, load_recipe
from multirobust.data import Data
from multirobust.errors import InputError, Interrupted, MultirobustError
from multirobust.evaluation import Estimate, Outcomes
from multirobust.experiment import Run, evaluate_run, load_data, plan, train_run
from multirobust.training import display_for, stop_on_interrupt


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate and write; return 0 if all is done, 75 if it must be called again."""
    options = _parser().parse_args(arguments)
    deadline = Deadline(options.minutes)
    try:
        recipe = _recipe(options)
        (run,) = plan(recipe, options.output)
        data = load_data(recipe.data)
        return _go_on(run, data, deadline, 60 * options.evaluation_minutes)
    except Interrupted as error:
        print(f"{error} (exit code {AGAIN})")
        return AGAIN
    except MultirobustError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _recipe(options: argparse.Namespace) -> Recipe:
    settings = [
        f'defenses=["{options.defense}"]',
        f"seeds=[{options.seed}]",
        "data.download=false",
        f"training.precision={options.precision}",
    ]
    if options.data is not None:
        folder = str(options.data).replace("\\", "\\\\").replace('"', '\\"')
        settings.append(f'data.folder="{folder}"')
    if options.limit is not None:
        settings.append(f"evaluation.limit={options.limit}")
    return load_recipe(options.recipe, [*options.set, *settings])


def _go_on(run: Run, data: Data, deadline: Deadline, evaluation_seconds: float) -> int:
    """Take the next steps of a run, until it is written or time is over."""
    if not run.trained:
        with stop_on_interrupt() as interrupted:
            deadline.lap()
            train_run(
                run, data, display=display_for(), stop=lambda: deadline.lap() or interrupted()
            )
        if deadline.left() < evaluation_seconds:
            print(
                f"{run.name} is trained; its evaluation needs up to {evaluation_seconds / 60:g} "
                f"minutes: call the same command again (exit code {AGAIN})"
            )
            return AGAIN
    # A call that has nothing else to do evaluates at once: no later call would have more time.
    outcomes = evaluate_run(run, data, report=print)
    path = run.folder.with_name(f"{run.name}.json")
    write(path, _described(run, data, outcomes))
    print(outcomes)
    print(f"done: {path}")
    return DONE


def _described(run: Run, data: Data, outcomes: Outcomes) -> dict[str, Any]:
    training = read(run.folder / "training.json") or {}
    made = {key: outcomes.manifest[key] for key in ("versions", "commit", "device", "time")}
    accuracies = {"clean": outcomes.clean()}
    accuracies |= {threat: outcomes.worst(threat) for threat in outcomes.threats}
    accuracies |= {"union": outcomes.union(), "avg": outcomes.average()}
    return {
        "benchmark": "cifar10",
        "data": {"name": data.name, "train": len(data.train), "test": len(data.test)},
        "defense": run.defense,
        "seed": run.seed,
        "recipe": run.recipe.model_dump(mode="json"),
        "training": training,
        "evaluation": {
            **made,
            "suite": outcomes.manifest["suite"],
            "images": len(outcomes),
            "seconds": sum(column.seconds for column in outcomes.columns),
            "errors": outcomes.manifest["errors"],
            "attacks": [
                {
                    "name": column.name,
                    "threat": column.threat,
                    "radius": column.radius,
                    "settings": column.settings,
                    "seconds": column.seconds,
                    "forwards": column.forwards,
                    "backwards": column.backwards,
                }
                for column in outcomes.columns
            ],
        },
        "accuracies": {name: _plain(estimate) for name, estimate in accuracies.items()},
    }


def _plain(estimate: Estimate) -> dict[str, float]:
    """An accuracy with its 95 % Wilson interval, and its range where attacks ended in errors."""
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "range_low": estimate.range_low,
        "range_high": estimate.range_high,
        "images": estimate.n,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--defense", required=True, help="a name of `multirobust list defenses`")
    add("--data", type=Path, metavar="DIR", help="holds the official pickles")
    add("--output", type=Path, required=True, metavar="DIR", help="for runs and results")
    add("--recipe", default="cifar10_preact", help="a name, or the path of a TOML file")
    add("--set", action="append", default=[], metavar="a.b=c", help="change a field of the recipe")
    add("--seed", type=int, default=0)
    add("--precision", default="bf16-mixed", choices=("32-true", "bf16-mixed", "64-true"))
    add("--limit", type=int, help="evaluate on the first so many test images; default: all")
    add("--minutes", type=float, help="stop before so many minutes are over; default: never")
    add(
        "--evaluation-minutes",
        type=float,
        default=10.0,
        help="leave the evaluation to the next call if less time is left after training",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
