"""One defense trained in several ways: what each costs, and whether the union differs.

    python benchmarks/variants.py exact=runs/exact every_8=runs/every_8 --json results/x.json

Each NAME=FOLDER holds trained and evaluated runs of the same defenses and seeds (`multirobust
train`, then `multirobust evaluate --suite fast`). Of every defense the first folder is what the
others are compared with, seed by seed, as a seed gives both the same first weights and batches:
"difference" is the mean of the differences of their unions in percent, "interval" half of its 95 %
interval by Student's t, so that a difference within it may be chance. Several calls with one file
add rows; a row that is measured again is replaced.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from multirobust.evaluation import difference_by_seed
from multirobust.experiment import find_runs, result_of
from multirobust.files import atomic_write
from multirobust.report import RunResult


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the runs, print a row each, and return (and save) all rows of the file."""
    options = parse(arguments)
    result: dict[str, Any] = {"about": {}, "rows": []}
    if options.json and options.json.is_file():
        result = json.loads(options.json.read_text(encoding="utf-8"))
    rows = measured(options)
    fresh = {key(row) for row in rows}
    result["rows"] = [row for row in result["rows"] if key(row) not in fresh] + rows
    for row in rows:
        shown = {name: row[name] for name in ("data", "defense", "variant", "union", "passes")}
        print("  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
    if options.json:
        atomic_write(options.json, (json.dumps(result, indent=1) + "\n").encode())
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="+", metavar="NAME=FOLDER", type=named)
    parser.add_argument("--defenses", nargs="+", help="only these")
    parser.add_argument("--suite", help="folder of the evaluation, if not the recipe's")
    parser.add_argument("--json", type=Path, help="keep the rows here")
    return parser.parse_args(arguments)


def named(text: str) -> tuple[str, Path]:
    """Return the name and the folder of NAME=FOLDER."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"must be NAME=FOLDER, got {text!r}")
    return name, Path(folder)


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return what identifies a row of the file."""
    return row["data"], row["defense"], row["variant"]


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every variant and defense."""
    first: dict[tuple[str, str], dict[int, float]] = {}
    rows = []
    for name, folder in options.variants:
        groups: dict[tuple[str, str], list[RunResult]] = defaultdict(list)
        abouts = {}
        for run in find_runs([folder]):
            if not options.defenses or run.defense in options.defenses:
                group = run.recipe.name, run.defense
                groups[group].append(result_of(run, options.suite))
                abouts[group] = json.loads((run.folder / "training.json").read_text("utf-8"))
        for (data, defense), results in groups.items():
            unions = {r.seed: 100 * r.outcomes.union().value for r in results}
            row = {"data": data, "defense": defense, "variant": name}
            row |= described(results, list(unions.values()))
            row |= against(first.setdefault((data, defense), unions), unions)
            about = abouts[data, defense]
            row["about"] = {part: about[part] for part in ("versions", "commit", "device", "time")}
            rows.append(row)
    return rows


def described(results: list[RunResult], unions: list[float]) -> dict[str, Any]:
    """Return the numbers of one variant, means over its seeds."""
    clean = [100 * result.outcomes.clean().value for result in results]
    passes = [result.forwards + result.backwards for result in results]
    return {
        "seeds": [result.seed for result in results],
        "images": len(results[0].outcomes),
        "clean": rounded(statistics.fmean(clean)),
        "union": rounded(statistics.fmean(unions)),
        "deviation": rounded(statistics.stdev(unions) if len(unions) > 1 else 0.0),
        "unions": [rounded(union) for union in unions],
        "passes": rounded(statistics.fmean(passes)),
        "seconds": rounded(statistics.fmean(result.training_seconds for result in results)),
    }


def against(base: dict[int, float], unions: dict[int, float]) -> dict[str, float | None]:
    """Return by how much the unions exceed others of the same seeds, and half of the interval."""
    gap = difference_by_seed(unions, base)
    if base is unions or gap is None:
        return {"difference": None, "interval": None}
    half = None if gap.half is None else rounded(gap.half)
    return {"difference": rounded(gap.mean), "interval": half}


def rounded(value: float) -> float:
    """Return a number with two decimals."""
    return round(float(value), 2)


if __name__ == "__main__":
    main()
