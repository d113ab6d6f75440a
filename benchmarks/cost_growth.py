"""How the cost of a training step grows with the batch, the image and the number of threats.

    OMP_NUM_THREADS=1 python benchmarks/cost_growth.py --output results/cost_growth.json
    python benchmarks/cost_growth.py --draw results/cost_growth.json --figure docs/cost-growth.svg

One number changes at a time, the others stay at 32 images of 32 x 32 and three threats. All attacks
take equally many steps, so that only their number counts; beyond three, the threats are the same
norms with half the radius. Measured are steps of the training loop itself: processor seconds (mean
over the attacks that a defense draws from, median over the rounds), the peak of the memory beyond
weights and momentum (see `meta_memory.py`), and forward and backward passes an image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parent / "gpu"))

from meta_memory import MB, peak_bytes, step_of
from passes import Clock, Times, arms_of, rotate, time_steps
from slices import Deadline, write
from step_time import Case, loop_of

from multirobust.analysis.canvas import sheet
from multirobust.analysis.curves import LINE_COLORS
from multirobust.analysis.plots import FAINT, WIDTH
from multirobust.attacks import PGD, Attack, UniformSampler, WorstCase
from multirobust.defenses import MNGAC, AdversarialTraining, AverageTraining, Defense
from multirobust.files import atomic_write
from multirobust.models import NoiseGenerator
from multirobust.provenance import provenance
from multirobust.threats import L1, L2, Linf
from multirobust.training.loop import Loop

DEFENSES: dict[str, Callable[[tuple[Attack, ...]], Defense[Any]]] = {
    "sat": lambda attacks: AdversarialTraining(UniformSampler(attacks)),
    "mng_ac": lambda attacks: MNGAC(UniformSampler(attacks), NoiseGenerator(3)),
    "adv_max": lambda attacks: AdversarialTraining(WorstCase(attacks)),
    "adv_avg": lambda attacks: AverageTraining(attacks),
}
AXES = {"batch": "Images a batch", "size": "Height and width", "threats": "Threats"}
MEASURES = {
    "seconds": "Seconds a step",
    "peak_mb": "Peak memory (MB)",
    "passes": "Passes an image",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure (or read) the rows, print, save and draw them."""
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.draw:
        result = json.loads(options.draw.read_text("utf-8"))
    else:
        settings = {name: getattr(options, name) for name in ("model", "set", "steps", "rounds")}
        about = {**provenance(), "clock": "processor time, one thread", "settings": settings}
        result = {"benchmark": "cost_growth", "about": about, "rows": []}
        for row in measured(options):
            print("  ".join(f"{name} {shown(value)}" for name, value in row.items()), flush=True)
            result["rows"].append(row)
        if options.output:
            write(options.output, result)
    if options.figure:
        atomic_write(options.figure, figure(result).encode())
    return result


def shown(value: object) -> str:
    """Return a number as it is printed."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each axis, value and defense."""
    usual = {"batch": options.batch, "size": options.size, "threats": 3}
    values = {"batch": options.batches, "size": options.sizes, "threats": options.threats}
    for axis in AXES:
        for value in values[axis]:
            place = {**usual, axis: value}
            loops = {name: loop(name, place, options) for name in DEFENSES}
            yield from (
                {"axis": axis, "value": value, "defense": name, **facts}
                for name, facts in costs(loops, options.rounds).items()
            )


def threats(count: int) -> tuple[Linf | L2 | L1, ...]:
    """Return so many threats: the norms in turn, each round with half the radius."""
    kinds, radii = (Linf, L2, L1), (8 / 255, 128 / 255, 2000 / 255)
    return tuple(kinds[i % 3](radii[i % 3] / 2 ** (i // 3)) for i in range(count))


def loop(name: str, place: dict[str, int], options: argparse.Namespace) -> Loop:
    """Return a training with a defense against so many threats."""
    attacks = tuple(
        PGD(threat=threat, steps=options.steps, step_size=threat.radius / 4)
        for threat in threats(place["threats"])
    )
    defense = DEFENSES[name](attacks)
    rotate(defense)
    settings = argparse.Namespace(
        recipe="cifar10", set=options.set, repeats=options.rounds + 2, device="cpu", **place
    )
    return loop_of(Case(options.model, "float32", name), settings, defense)


def costs(loops: dict[str, Loop], rounds: int) -> dict[str, dict[str, float]]:
    """Return what a step of each training costs; they take their rounds in turn."""
    clock, times = Clock(torch.device("cpu")), {}
    for name, training in loops.items():
        step_of(training)()  # loads what the first step loads
        times[name] = Times(arms_of(training.job.defense))
    for _ in range(rounds):
        for name, training in loops.items():
            time_steps(training, times[name], clock, Deadline(None), untimed=0)
    return {
        name: {
            "seconds": statistics.median(map(statistics.fmean, times[name].steps)),
            "peak_mb": peak_bytes(step_of(training)) / MB,
            "forwards": times[name].forwards,
            "backwards": times[name].backwards,
            "passes": times[name].forwards + times[name].backwards,
        }
        for name, training in loops.items()
    }


def figure(result: dict[str, Any]) -> str:
    """Return the SVG document: a column for what grows, a row for what it costs."""
    rows = result["rows"]
    said = "; ".join(
        f"{row['defense']} at {AXES[row['axis']].lower()} {row['value']}: {row['seconds']:.3g} s, "
        f"{row['peak_mb']:.3g} MB, {row['passes']:.3g} passes"
        for row in rows
    )
    title = "Time, memory and passes of a step against batch, image size and number of threats"
    with sheet(WIDTH, 6.0, title=title, description=f"{said}.") as page:
        panels = page.figure.subplots(len(MEASURES), len(AXES), squeeze=False)
        for line, measure in zip(panels, MEASURES, strict=True):
            for axes, axis in zip(line, AXES, strict=True):
                draw(axes, [row for row in rows if row["axis"] == axis], measure)
            line[0].set_ylabel(MEASURES[measure])
        for axes, label in zip(panels[-1], AXES.values(), strict=True):
            axes.set_xlabel(label)
        handles = panels[0, 0].get_lines()
        page.figure.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), frameon=False
        )
    return page.svg


def draw(axes: Any, rows: Sequence[dict[str, Any]], measure: str) -> None:
    """Draw one panel, a line for each defense."""
    names = list(dict.fromkeys(row["defense"] for row in rows))
    for name, color, mark in zip(names, LINE_COLORS, "osD^", strict=False):
        points = [(row["value"], row[measure]) for row in rows if row["defense"] == name]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=color, marker=mark, markersize=4, linewidth=1.3, label=name)
    axes.set_xticks(ticks(sorted({row["value"] for row in rows})))
    axes.set_ylim(0, 1.08 * max(row[measure] for row in rows))
    axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def ticks(values: Sequence[int]) -> list[int]:
    """Return the values whose numbers have room on an axis; the last has."""
    kept: list[int] = []
    for value in reversed(values):
        if not kept or kept[-1] - value > (values[-1] - values[0]) / 12:
            kept.append(value)
    return kept


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="small_cnn")
    add("--set", action="append", default=[], metavar="a.b=c", help="change a field of the recipe")
    add("--batch", type=int, default=32, help="images of a batch where the batch does not grow")
    add("--size", type=int, default=32, help="of the images where it does not grow")
    add("--batches", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    add("--sizes", type=int, nargs="+", default=[16, 32, 48, 64])
    add("--threats", type=int, nargs="+", default=[1, 2, 3, 4, 6])
    add("--steps", type=int, default=5, help="of each attack")
    add("--rounds", type=int, default=3)
    add("--output", type=Path, help="write the rows to this JSON file")
    add("--draw", type=Path, metavar="FILE", help="measure nothing, draw the rows of this file")
    add("--figure", type=Path, help="draw them into this SVG file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
