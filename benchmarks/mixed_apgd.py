"""Auto-PGD with an attack for each image, against the bare passes that it counts.

    python benchmarks/mixed_apgd.py --batch 9 --repeats 3 --json results/mixed_apgd.json

An attack on a batch whose images are spread over linf, l2 and l1 in equal parts, and as many
forward and input-gradient passes of that batch, run in turn; medians and their ratio. Both take
T + 1 forward and T backward passes. "one" is `LockstepAPGD` in each norm alone, in the same rounds:
what mixing adds is the difference to their mean.

Times are processor time on a CPU and wall time on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from multirobust.attacks import CrossEntropy, LockstepAPGD, MixedAPGD, PassMeter, attacking
from multirobust.attacks import input_gradient as bare_pass
from multirobust.models import build
from multirobust.threats import Allotment, threats_for

NORMS = ("linf", "l2", "l1")


def main(arguments: list[str] | None = None) -> dict:
    """Time each model, print, and return (and save) the rows."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    cuda = torch.device(options.device).type == "cuda"
    result = {
        "about": {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if cuda else platform.machine(),
            "load": "the machine was shared with other work" if options.shared else "idle machine",
            "load_average": [round(load, 2) for load in os.getloadavg()],
            **{k: v for k, v in vars(options).items() if isinstance(v, int | list)},
        },
        "rows": [],
    }
    for name in options.models:
        row = {"model": name} | measure(name, options)
        result["rows"].append(row)
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  ".join(shown), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["small_cnn", "preact_resnet_18"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shared", action="store_true", help="say that the machine is shared")
    parser.add_argument("--json", type=Path, help="save the rows here")
    return parser.parse_args(arguments)


def measure(name: str, options: argparse.Namespace) -> dict:
    """Return the seconds of the mixed attack, of its passes and of each norm alone."""
    device = torch.device(options.device)
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((options.batch, 3, options.size, options.size), generator=draw).to(device)
    model = build(name, classes=10).to(device).eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    balls = threats_for("cifar10")
    single = {norm: LockstepAPGD(threat=balls[norm], steps=options.steps) for norm in NORMS}
    mixed = MixedAPGD(tuple(single.values()))
    groups = [i % len(NORMS) for i in range(len(x))]
    tasks: dict[str, Callable[[], object]] = {
        "mixed": lambda: mixed(model, x, y, Allotment.of(groups, len(NORMS), device)),
        "bare": lambda: passes(model, x, y, options.steps),
    }
    for norm, attack in single.items():
        tasks[norm] = lambda attack=attack: attack(model, x, y)
    with PassMeter(model) as meter:
        tasks["mixed"]()
    with PassMeter(model) as bare:
        tasks["bare"]()
    assert (meter.forwards, meter.backwards) == (bare.forwards, bare.backwards)
    rounds = [
        {task: clock(run, device) for task, run in tasks.items()} for _ in range(options.repeats)
    ]
    return summary(rounds) | {
        "forwards": meter.forwards / len(x),
        "backwards": meter.backwards / len(x),
    }


def summary(rounds: list[dict[str, float]]) -> dict:
    """Return medians, and the ratios to the bare passes of the same round."""
    seconds = {task: statistics.median(r[task] for r in rounds) for task in rounds[0]}
    ratio = {task: statistics.median(r[task] / r["bare"] for r in rounds) for task in rounds[0]}
    one = statistics.mean(ratio[norm] for norm in NORMS)
    spread = [round(r["mixed"] / r["bare"], 4) for r in rounds]
    return {
        "mixed_seconds": seconds["mixed"],
        "bare_seconds": seconds["bare"],
        "ratio": ratio["mixed"],
        "one": one,
        "mixing": ratio["mixed"] - one,
        "ratios": spread,
    }


def passes(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """Pass the batch forward and its gradient back so many times, and forward once more."""
    with attacking(model), torch.no_grad():
        for _ in range(steps):
            bare_pass(model, x, lambda z: CrossEntropy().of(z, y, y))
        model(x)


def clock(task: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run: of wall time on a GPU, of processor time on a CPU."""
    read = time.perf_counter if device.type == "cuda" else time.process_time
    start = read()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return read() - start


if __name__ == "__main__":
    main()
