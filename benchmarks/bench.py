"""What a step costs on this machine, beside references and limits: the table of `make bench`.

    python benchmarks/bench.py --output results/bench.json
    python benchmarks/bench.py attack step --models small_cnn --rounds 1

Each row has ours, a reference and a limit, which run in turn; ratios are medians over the rounds.
The file keeps the parts that are not measured again; each says when and how it was.
Times are processor seconds of one thread, which other work on the machine disturbs little; with
more threads they are wall time and the machine should be quiet. The parts:

attack       PGD and the training Auto-PGD, on batch statistics; foolbox's PGD of as many steps; the
             same number of bare passes, forward and back to the images
step         a whole step of the training loop; one of SAT, with each attack in turn; the bare
             passes that the step needs (see `gpu/passes.py`)
consistency  the loss of three views in one pass; in three; three bare training passes
memory       the peak of the meta step (see `meta_memory.py`); a training step; what a training pass
             must keep
projection   the exact projections (see `projection.py`); a sort of the same tensor; a copy of it
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parent / "gpu"))

import projection
import step_cost
from comparison import Row, header
from meta_memory import memory_rows
from slices import read, write

from multirobust.provenance import provenance


def projection_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Compare each exact projection with a sort, and with a copy of its tensor."""
    x, _ = step_cost.batch_of(options, options.projection_batches)
    for found in projection.time_rows(f"{len(x)} x {options.size}", x, 10 * options.rounds):
        yield Row(
            part="projection", model=found["images"], case=f"{found['norm']}, {found['input']}",
            unit="ms", ours=(found["ms"],), reference_name="torch.sort",
            reference=(found["sort ms"],), limit_name="a copy", limit=(found["copy ms"],),
        )  # fmt: skip


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "attack": step_cost.attack_rows,
    "step": step_cost.step_rows,
    "consistency": step_cost.consistency_rows,
    "memory": memory_rows,
    "projection": projection_rows,
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure the parts, print their rows, and return (and save) all that the file then holds."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    there = read(options.output) if options.output else None
    parts: dict[str, Any] = dict((there or {}).get("parts", {}))
    result = {"benchmark": "bench", "parts": parts}
    print(header())
    for part in options.parts or PARTS:
        made, start = about(options), time.perf_counter()
        rows = []
        for row in PARTS[part](options):
            print(row.line(), flush=True)
            rows.append(row.plain())
        made |= {"seconds": round(time.perf_counter() - start, 1), "load_at_end": _load()}
        parts[part] = {"about": made, "rows": rows}
        if options.output:
            write(options.output, result)
        names = {(row["reference_name"], row["limit_name"]) for row in rows}
        for reference, limit in sorted(names):
            print(f"{part}: the reference is {reference}, the limit {limit}")
        print(f"{part}: {made['seconds']:.0f} s")
    return result


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Say what was measured, where and how, and how busy the machine was before."""
    settings = {
        name: value for name, value in vars(options).items() if name not in ("output", "parts")
    }
    clock = "processor time" if options.threads == 1 else "wall time"
    return {
        **provenance(),
        "processors": os.cpu_count(),
        "clock": clock,
        "load_before": _load(),
        "settings": settings,
    }


def _load() -> list[float] | None:
    """Return how many processes wanted to run, over 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help="default: all")
    models = ["preact_resnet_18", "wrn_28_2", "small_cnn"]
    add("--models", nargs="+", default=models, metavar="NAME")
    add("--cases", nargs="+", default=list(step_cost.STEPS), choices=list(step_cost.STEPS))
    add("--batch", type=int, default=6, help="images of a batch")
    add("--memory-batch", type=int, default=32, help="images of a batch whose memory is measured")
    add("--projection-batches", type=int, default=16, help="batches projected at once")
    add("--size", type=int, default=32, help="height and width of the images")
    add("--attack-steps", type=int, default=6, help="steps of the attacks measured alone")
    add("--rounds", type=int, default=3, help="of which the medians are taken")
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=0)
    add("--recipe", default="cifar10", help="gives attacks, radii and hyper-parameters")
    add("--set", action="append", default=[], metavar="a.b=c", help="change a field of the recipe")
    add("--output", type=Path, help="write the rows to this JSON file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
