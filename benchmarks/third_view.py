"""Does learned noise help? Third views of the consistency loss at equal passes.

    OMP_NUM_THREADS=1 python benchmarks/third_view.py --output runs/third_view \
        --json results/third_view.json

Every variant is `mng_ac` of a recipe with another third view: learned noise, a generator that
never steps, Gaussian noise, a point drawn uniformly from the ball, or no third view; or learned
noise through another map. With `defense.equal_passes` the attacks of those that cost less get the
passes that are left over, so that none has fewer than learned noise. "no_consistency" gives the
divergence no weight: its loss is that of SAT. Everything goes on where it stopped.

The JSON holds of each run the accuracies in % and the passes, and of each variant mean and 95 %
interval (Student's t over the seeds) of its union less that of "learned" with the same seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from multirobust.config import Recipe, load_recipe
from multirobust.evaluation import difference_by_seed
from multirobust.experiment import evaluate_run, load_data, prepare, train_all
from multirobust.experiment.runs import training_facts
from multirobust.files import atomic_write
from multirobust.provenance import provenance

VARIANTS: dict[str, tuple[str, ...]] = {
    "learned": (),
    "frozen": ("defense.meta_every=0",),
    "gaussian": ("defense.noise='gaussian'",),
    "uniform_in_ball": ("defense.noise='uniform_in_ball'",),
    "none": ("defense.noise='none'",),
    "no_consistency": ("defense.noise='none'", "defense.beta=0.0"),
    "smooth": ("defense.noise_map='smooth'", "defense.generator_rate=30.0"),
    "straight_through": ("defense.noise_map='straight_through'", "defense.generator_rate=30.0"),
}
"""What a recipe says of each variant."""


def main(arguments: list[str] | None = None) -> dict:
    """Train and evaluate every variant and seed; print the rows, and return (and save) all."""
    options = parse(arguments)
    result = {"about": provenance(), "recipe": options.recipe, "rows": [], "less_learned": {}}
    for seed in options.seeds:
        for name in options.variants:
            row = measured(options, name, seed)
            result["rows"].append(row)
            print(" ".join(f"{k} {v:.1f}" if k == "union" else f"{k} {v}" for k, v in row.items()))
            result["less_learned"] = differences(result["rows"])
            if options.json:
                atomic_write(options.json, (json.dumps(result, indent=1) + "\n").encode())
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="digits", help="whose data, model, schedule")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="overrides")
    parser.add_argument("--data-folder", help="where the files of the data set lie")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, help="save everything here")
    return parser.parse_args(arguments)


def recipe_of(options: argparse.Namespace, name: str, seed: int) -> Recipe:
    """Return the recipe of one run."""
    folder = [f"data.folder={options.data_folder!r}"] if options.data_folder else []
    chosen = ["defenses=['mng_ac']", f"seeds=[{seed}]", f"evaluation.suite={options.suite}"]
    chosen += ["defense.equal_passes=true", *VARIANTS[name]]
    return load_recipe(options.recipe, [*folder, *chosen, *options.overrides])


def measured(options: argparse.Namespace, name: str, seed: int) -> dict:
    """Train and evaluate one run, and return its row."""
    (run,), data = prepare(recipe_of(options, name, seed), options.output / name)
    train_all([run], data)
    outcomes, facts = evaluate_run(run, load_data(run.recipe.data)), training_facts(run)
    found = {"clean": outcomes.clean(), **{norm: outcomes.worst(norm) for norm in outcomes.threats}}
    found["union"] = outcomes.union()
    passes = {key: facts[key] for key in ("steps", "forwards", "backwards", "seconds")}
    return {"variant": name, "seed": seed, **percent(found), **passes}


def percent(found: dict) -> dict[str, float]:
    """Return estimates in %."""
    return {name: round(100 * estimate.value, 3) for name, estimate in found.items()}


def differences(rows: list[dict]) -> dict[str, dict]:
    """Return the union of each variant less that of learned noise, over the seeds of both."""
    union = {(row["variant"], row["seed"]): row["union"] for row in rows}
    found = {}
    for name in dict.fromkeys(row["variant"] for row in rows):
        ours, learned = (
            {s: u for (v, s), u in union.items() if v == of} for of in (name, "learned")
        )
        gap = difference_by_seed(ours, learned)
        if name != "learned" and gap is not None:
            found[name] = {"mean": gap.mean, "half": gap.half, "seeds": len(gap.seeds)}
    return found


if __name__ == "__main__":
    main()
