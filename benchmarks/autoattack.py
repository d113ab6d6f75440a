"""AutoAttack's standard suite, built from our attacks, against the published implementation.

    python benchmarks/autoattack.py --run runs/sat-s0 --images 1000 --output results/autoattack.json
    python benchmarks/autoattack.py --run runs/sat-s0 --skip-reference
    python benchmarks/autoattack.py --run runs/sat-s0 --reference stored/sat-linf.json

For each norm and seed, ours and the package `pyautoattack` run in turn on the first images (test
images; where there are too few, training images follow). Both are cascades: each attack gets what
those before it left standing. Reported: robust accuracy of both, the images on which they differ,
seconds, and passes per attack and in total. Of ours every image found is checked: in float64 its
distance over the radius, and its least and greatest pixel.

A stored reference is a JSON file with the keys norm, radius, n (images), seconds and survived (a 0
or 1 for each image). Its seconds are shown, but no ratio: they are of another run.

The published attacks count steps, ours questions to the model: their 100 steps are 101 questions,
and 103 in three balls (`wide`). Of the passes of both, checks before the attacks do not count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from multirobust.attacks import (
    IterativeAttack,
    PassMeter,
    run_rows,
    threats_from,
)
from multirobust.evaluation.suites_in_norms import standard_attacks
from multirobust.experiment import find_runs, load_data, load_model
from multirobust.provenance import provenance
from multirobust.threats import Threat

NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")


def suite(threat: Threat) -> dict[str, IterativeAttack]:
    """Return our attacks at the published settings, under the published names."""
    return {n.replace("_", "-"): attack for n, attack in standard_attacks(threat).items()}


def main(arguments: list[str] | None = None) -> dict:
    """Run the comparison, print a line a norm and seed, and return (and save) all numbers."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    model, x, y, threats = load(options)
    result = {
        "about": provenance(options.device) | {"arguments": plain(options)},
        "images": len(x),
        "clean_accuracy": percent(survivors(model, x, y)),
        "rows": [],
    }
    for norm in options.norms:
        for seed in options.seeds:
            row = {"norm": norm, "seed": seed}
            row |= compare(model, x, y, threats[norm], seed, options)
            result["rows"].append(row)
            print(line(row), flush=True)
            if options.output:
                options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; ends the program where the reference is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a folder of `multirobust run`")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--norms", nargs="+", default=["linf", "l2", "l1"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--attacks", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--data-folder", help="where the data set lies, if not where it was")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="save all numbers here")
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--skip-reference", action="store_true", help="ours alone")
    against.add_argument("--reference", type=Path, nargs="+", help="verdicts measured before")
    options = parser.parse_args(arguments)
    needed = not (options.skip_reference or options.reference)
    if needed and importlib.util.find_spec("pyautoattack") is None:
        parser.error(
            "the package pyautoattack is not installed; pip install pyautoattack, or give stored "
            "verdicts with --reference FILE, or run ours alone with --skip-reference"
        )
    return options


def plain(options: argparse.Namespace) -> dict:
    """Return the options as JSON values that name no folder of this machine."""
    rest = {k: v for k, v in vars(options).items() if k not in ("data_folder", "output")}
    files = [path.name for path in options.reference or []]
    return rest | {"run": options.run.name, "reference": files}


def load(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor, dict[str, Threat]]:
    """Return the model of a run folder, the first images with their labels, and its threats."""
    (run,) = find_runs([options.run])
    source = run.recipe.data
    if options.data_folder:
        source = source.model_copy(update={"folder": options.data_folder})
    data = load_data(source)
    model = load_model(run, data).to(options.device).eval()
    first = data.test.first(min(options.images, len(data.test)))
    images, labels = [first.floats()], [first.labels]
    if missing := options.images - len(first):
        more = data.train.first(min(missing, len(data.train)))
        images.append(more.floats())
        labels.append(more.labels)
    x, y = torch.cat(images), torch.cat(labels)
    return model, x.to(options.device), y.to(options.device), threats_from(run.recipe.threats)


def compare(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, options: argparse.Namespace
) -> dict:
    """Return what ours and the reference found and spent, and where they differ."""
    ours, survived = run_ours(model, x, y, threat, seed, options)
    row = {"radius": threat.radius, "ours": ours}
    if options.skip_reference:
        return row
    if options.reference:
        reference, theirs = stored(options.reference, threat, len(x))
    else:
        reference, theirs = run_reference(model, x, y, threat, seed, options)
        row["time_ratio"] = ours["seconds"] / reference["seconds"]
    theirs = theirs.to(survived.device)
    return row | {
        "reference": reference,
        "accuracy_difference": ours["accuracy"] - reference["accuracy"],
        "differing_share": percent(survived != theirs),
        "only_ours_broke": (theirs & ~survived).nonzero().flatten().tolist(),
        "only_reference_broke": (survived & ~theirs).nonzero().flatten().tolist(),
    }


def run_ours(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, options: argparse.Namespace
) -> tuple[dict, Tensor]:
    """Return the numbers of our cascade and which images it left standing."""
    x_adv, standing = x.clone(), survivors(model, x, y)
    log = Log(model)
    with log.meter:
        for name, attack in suite(threat).items():
            rows = standing.nonzero().squeeze(1)
            if name not in options.attacks or not len(rows):
                continue
            log.begin(name, len(rows))
            generator = torch.Generator(x.device).manual_seed(seed)
            size = options.batch_size
            found = run_rows(attack, model, x[rows], y[rows], batch_size=size, generator=generator)
            log.end()
            x_adv[rows] = found
            standing[rows] = survivors(model, found, y[rows])
            log.attacks[-1]["broken"] = len(rows) - int(standing.sum())
    excess = threat.distance(x_adv.double(), x.double()) / threat.radius - 1
    checks = {
        "excess": max(0.0, float(excess.max())),
        "least_pixel": float(x_adv.min()),
        "greatest_pixel": float(x_adv.max()),
    }
    return {"accuracy": percent(standing), **log.total(len(x)), **checks}, standing


def run_reference(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, options: argparse.Namespace
) -> tuple[dict, Tensor]:
    """Return the numbers of the published cascade and which images it left standing."""
    from pyautoattack import AutoAttack

    attacker = AutoAttack(
        model,
        norm=threat.norm.capitalize(),
        eps=threat.radius,
        seed=seed,
        device=options.device,
        version="standard",
    )
    attacker.attacks_to_run = [name for name in NAMES if name in options.attacks]
    log = Log(model)
    listener = Listener(log)
    logger = logging.getLogger("auto-attack")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(listener)
    try:
        with log.meter:
            x_adv, _ = attacker.run_standard_evaluation(
                x.clone(), y.clone(), batch_size=options.batch_size
            )
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
    standing = survivors(model, x_adv, y)
    excess = threat.distance(x_adv.double(), x.double()) / threat.radius - 1
    numbers = {"accuracy": percent(standing), **log.total(len(x)), "excess": float(excess.max())}
    return numbers, standing


def stored(files: list[Path], threat: Threat, images: int) -> tuple[dict, Tensor]:
    """Return the stored numbers of this norm and radius and which images were left standing."""
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["norm"] != threat.norm:
            continue
        if abs(found["radius"] - threat.radius) > 1e-9 or found["n"] < images:
            raise SystemExit(
                f"{file}: must be of radius {threat.radius} and at least {images} images, got "
                f"radius {found['radius']} and {found['n']} images; change --images or the file."
            )
        survived = torch.tensor(found["survived"][:images], dtype=torch.bool)
        seconds = found["seconds"] if found["n"] == images else None
        return {"accuracy": percent(survived), "seconds": seconds}, survived
    raise SystemExit(f"--reference: no file of norm {threat.norm!r}; change --norms or add one.")


@dataclass
class Log:
    """Seconds and passes of each attack of a cascade."""

    model: nn.Module
    attacks: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meter = PassMeter(self.model)

    def begin(self, name: str, standing: int | None = None) -> None:
        """Start to count for the next attack."""
        self.start = self._now()
        self.attacks.append({"attack": name} | ({"standing": standing} if standing else {}))

    def end(self) -> None:
        """Add what the attack spent since it began."""
        for name, value in self._now().items():
            self.attacks[-1][name] = value - self.start[name]

    def total(self, images: int) -> dict:
        """Return the sums over the attacks, the passes for each of the images, and each attack."""
        sums = {
            name: sum(attack.get(name, 0) for attack in self.attacks)
            for name in ("seconds", "cpu_seconds", "forwards", "backwards")
        }
        for name in ("forwards", "backwards"):
            sums[f"{name}_an_image"] = sums.pop(name) / images
        return sums | {"attacks": self.attacks}

    def _now(self) -> dict[str, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {
            "seconds": time.perf_counter(),
            "cpu_seconds": time.process_time(),
            "forwards": self.meter.forwards,
            "backwards": self.meter.backwards,
        }


class Listener(logging.Handler):
    """Tells from what the published suite logs when its attacks begin and end."""

    def __init__(self, log: Log):
        super().__init__(logging.DEBUG)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Begin with "running NAME", end with "robust accuracy after NAME"."""
        message = record.getMessage()
        if message.startswith("running "):
            self.log.begin(message.removeprefix("running "))
        elif message.startswith("robust accuracy after "):
            self.log.end()


@torch.no_grad()
def survivors(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which images are classified correctly, (n,) bool."""
    return torch.cat([model(part).argmax(1) for part in x.split(250)]) == y


def percent(mask: Tensor) -> float:
    """Return the share of true entries in percent."""
    return 100 * int(mask.sum()) / len(mask)


def line(row: dict) -> str:
    """Return what is printed of a norm and seed."""
    ours, reference = row["ours"], row.get("reference")
    cells = [f"{row['norm']} seed {row['seed']}: ours {ours['accuracy']:.2f} %"]
    cells.append(f"{ours['seconds']:.1f} s, excess {ours['excess']:.1e}")
    if reference:
        cells.append(f"reference {reference['accuracy']:.2f} %, {reference['seconds'] or 0:.1f} s")
        cells.append(f"differing {row['differing_share']:.2f} %")
    if "time_ratio" in row:
        cells.append(f"ratio {row['time_ratio']:.3f}")
    return ", ".join(cells)


if __name__ == "__main__":
    main()
