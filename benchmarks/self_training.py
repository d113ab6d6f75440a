"""Self-training where labels are few: robust accuracy with and without pseudo-labeled images.

    python benchmarks/self_training.py --output runs/self_training --json results/self_training.json
    python benchmarks/self_training.py cifar10_small --labeled 1000 --data-folder DATA --output ...

Most labels of the training images are held out. A standard model is trained on the labeled images,
it labels the rest, and each defense is trained on the labeled images alone and on both. With the
same epochs, "with" takes more steps, as an epoch ends with the labeled images; --equal-steps gives
"without" as many, by more epochs. Everything goes on where it stopped.

The JSON holds the recipes, the commit, and of each run the seed, accuracies in %, seconds, and
passes per image seen. True labels of the rest are used for one number only, the accuracy of the
pseudo-labels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from multirobust.config import Recipe, load_recipe
from multirobust.evaluation import Outcomes
from multirobust.experiment import Run, evaluate_run, load_data, prepare, train_all
from multirobust.experiment.pseudo_labeling import PseudoLabels, pseudo_label
from multirobust.experiment.runs import training_facts
from multirobust.provenance import provenance

PAIRS = (("trades", "rst_linf"), ("mng_ac", "mng_ac_rst"))
"""Each defense without and with pseudo-labeled images."""


def main(arguments: list[str] | None = None) -> dict:
    """Train, label, train and evaluate; print the rows, and return (and save) all."""
    options = parse(arguments)
    result = {"about": about(options), "pseudo_labels": [], "rows": []}
    for seed in options.seeds:
        made = labeled_by_standard(options, seed)
        facts = {"seed": seed, "images": made.count, "accuracy": 100 * (made.accuracy or 0)}
        result["pseudo_labels"].append(facts)
        print(f"seed {seed}: {made.count} pseudo-labels, {facts['accuracy']:.1f} % right")
        for row in compared(options, seed, made.path):
            result["rows"].append(row)
            shown = (f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print("  ".join(shown), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="digits", help="whose data, model, schedule")
    parser.add_argument("--labeled", type=int, default=200, help="images that keep their labels")
    parser.add_argument("--share", type=float, default=0.5, help="of unlabeled images in a batch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", nargs="+", default=[pair[1] for pair in PAIRS])
    parser.add_argument("--equal-steps", action="store_true")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="overrides")
    parser.add_argument("--data-folder", help="where the files of the data set lie")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, help="save everything here")
    return parser.parse_args(arguments)


def about(options: argparse.Namespace) -> dict:
    """Describe what is compared, and on what machine."""
    with_labels = recipe_of(options, "standard", 0)
    chosen = {name: getattr(options, name) for name in ("labeled", "share", "seeds", "equal_steps")}
    recipe = with_labels.model_dump(mode="json", exclude_none=True)
    return {**chosen, "recipe": recipe, **provenance()}


def recipe_of(options: argparse.Namespace, defense: str, seed: int, *more: str) -> Recipe:
    """Return the recipe of one run: only the first images have labels.

    `rst_linf` takes the steps of `trades`, which it is compared with.
    """
    folder = [f"data.folder={options.data_folder!r}"] if options.data_folder else []
    chosen = [f"data.train_limit={options.labeled}", f"evaluation.suite={options.suite}"]
    chosen += [f"defenses=[{defense!r}]", f"seeds=[{seed}]"]
    chosen = [*folder, *chosen, *options.overrides, *more]
    step_size = load_recipe(options.recipe, chosen).attack.linf.step_size
    return load_recipe(options.recipe, [*chosen, f"defense.rst_step_size={step_size}"])


def labeled_by_standard(options: argparse.Namespace, seed: int) -> PseudoLabels:
    """Train a standard model on the labeled images, and label the rest with it."""
    recipe = recipe_of(options, "standard", seed)
    run = trained(recipe, options.output / "standard")
    return pseudo_label(run, recipe.data.name, options.output / f"rest-s{seed}.npz")


def trained(recipe: Recipe, output: Path) -> Run:
    """Return the one run of a recipe, trained."""
    (run,), data = prepare(recipe, output)
    train_all([run], data)
    return run


def compared(options: argparse.Namespace, seed: int, unlabeled: Path) -> list[dict]:
    """Return a row for each defense without and with the pseudo-labeled images."""
    rows = []
    for without, beside in PAIRS:
        if beside not in options.pairs:
            continue
        share = [f"data.unlabeled={str(unlabeled)!r}", f"data.unlabeled_share={options.share}"]
        both = recipe_of(options, beside, seed, *share)
        alone = recipe_of(options, without, seed)
        if options.equal_steps:
            epochs = round(alone.training.epochs / (1 - options.share))
            alone = recipe_of(options, without, seed, f"training.epochs={epochs}")
        for kind, recipe in (("without", alone), ("with", both)):
            rows.append(measured(trained(recipe, options.output / kind), kind))
    return rows


def measured(run: Run, kind: str) -> dict:
    """Evaluate a run and return its row."""
    outcomes, facts = evaluate_run(run, load_data(run.recipe.data)), training_facts(run)
    return {
        "defense": run.defense,
        "unlabeled": kind,
        "seed": run.seed,
        **accuracies(outcomes),
        "seconds": facts["seconds"],
        "steps": facts["steps"],
        "forwards": facts["forwards"],
        "backwards": facts["backwards"],
    }


def accuracies(outcomes: Outcomes) -> dict[str, float]:
    """Return clean, per-threat and union accuracy in %."""
    found = {"clean": outcomes.clean(), **{name: outcomes.worst(name) for name in outcomes.threats}}
    found["union"] = outcomes.union()
    return {name: 100 * estimate.value for name, estimate in found.items()}


if __name__ == "__main__":
    main()
