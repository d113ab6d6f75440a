"""Time and peak memory of the modes of `meta_gradient`, against one training forward-backward pass.

    OMP_NUM_THREADS=1 python benchmarks/meta_gradient.py --width 16 --batch 64

Each row runs in a process of its own. Time is the fastest of the repetitions, in seconds
of processor time (of wall time on a GPU); peak memory is what the process holds at its highest
(resident set; allocated tensors on a GPU) beyond what it held before the first full-size pass.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from multirobust.metagrad import Mode, call_with, meta_gradient
from multirobust.models import NoiseGenerator, build

REFERENCE = "training_pass"
ROWS = (REFERENCE, *get_args(Mode))


def main(arguments: list[str] | None = None) -> dict[str, object]:
    """Measure every row, print a table, and return (and with --output save) the numbers."""
    options = _parser().parse_args(arguments)
    if options.tiny:
        options.width, options.batch, options.size, options.repeats = 2, 4, 8, 1
    spawn = multiprocessing.get_context("spawn")
    rows, gradients = {}, {}
    for name in ROWS:
        with spawn.Pool(1) as pool:
            seconds, peak, gradient = pool.apply(measure, (name, vars(options)))
        rows[name] = {"seconds": seconds, "peak_mb": peak}
        gradients[name] = torch.tensor(gradient)
    _compare(rows, gradients)
    result = {"options": vars(options), "machine": _machine(), "rows": rows}
    _print(result)
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def measure(name: str, options: dict) -> tuple[float, float, list[float]]:
    """Return the seconds, the peak memory in MB and the meta-gradient of one row."""
    device = torch.device(options["device"])
    _pass(name, options | {"batch": 2, "size": 8})()  # loads what the first pass loads
    run = _pass(name, options)
    before = _held(device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(options["repeats"]):
        start = clock()
        gradients = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    peak = (_highest(device) - before) / 2**20
    return min(seconds), peak, torch.cat([g.flatten() for g in gradients]).tolist()


def _pass(name: str, options: dict) -> Callable[[], tuple[Tensor, ...]]:
    """Return what one row repeats, on its own model, generator and batch."""
    device, batch, size = options["device"], options["batch"], options["size"]
    draw = torch.Generator().manual_seed(0)
    model = build("preact_resnet_18", classes=10, width=options["width"]).to(device)
    theta = dict(model.named_parameters())
    x, x_adv = torch.rand(2, batch, 3, size, size, generator=draw).to(device)
    y = torch.randint(10, (batch,), generator=draw).to(device)
    noise = NoiseGenerator(3, conditioning="noise_and_image")
    z = noise.draw(torch.empty(batch, 3, size, size), draw).to(device)
    noise = noise.to(device)
    names = [key for key, _ in noise.named_parameters()]

    def inner(weights: dict[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
        delta = torch.func.functional_call(noise, dict(zip(names, phi, strict=True)), (z, x))
        x_aug = (x + 0.1 * delta).clamp(0, 1)
        return F.cross_entropy(call_with(model, weights, x_aug), y)

    def outer(weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(call_with(model, weights, x_adv), y)

    def training_pass() -> tuple[Tensor, ...]:
        return torch.autograd.grad(outer(theta), tuple(theta.values()))[-1:]

    def look_ahead() -> tuple[Tensor, ...]:
        phi = tuple(noise.parameters())
        return meta_gradient(inner, outer, theta, phi, lr=options["lr"], mode=name).gradients

    return training_pass if name == REFERENCE else look_ahead


def _held(device: torch.device) -> int:
    """Return the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _highest(device: torch.device) -> int:
    """Return the most bytes in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _compare(rows: dict, gradients: dict[str, Tensor]) -> None:
    """Add to each row its ratios to the reference, and its distance to the first mode."""
    reference, expected = rows[REFERENCE], gradients[ROWS[1]]
    for name, row in rows.items():
        row["time_ratio"] = row["seconds"] / reference["seconds"]
        row["memory_ratio"] = row["peak_mb"] / max(reference["peak_mb"], 1e-9)
        if name != REFERENCE:
            row["error"] = ((gradients[name] - expected).norm() / expected.norm()).item()


def _machine() -> dict[str, object]:
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _print(result: dict) -> None:
    print(f"{'':22}{'seconds':>9}{'ratio':>8}{'peak MB':>10}{'ratio':>8}{'rel. error':>12}")
    for name, row in result["rows"].items():
        error = f"{row['error']:12.1e}" if "error" in row else f"{'':12}"
        print(
            f"{name:22}{row['seconds']:9.3f}{row['time_ratio']:8.2f}"
            f"{row['peak_mb']:10.1f}{row['memory_ratio']:8.2f}{error}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16, help="of the PreActResNet-18 (64)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--output", help="write the numbers to this JSON file")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
