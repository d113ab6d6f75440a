"""Time of the exact projections against a sort, and the budget that project-then-clip loses.

    python benchmarks/projection.py --repeats 30 --json results/projection.json
    python benchmarks/projection.py --images cifar10.npy

Times, without gradient as in an attack: each projection and `torch.sort` of the same shape run in
turn, `--repeats` times; medians of the processor time (on a GPU of the wall time) and their ratio.
Inputs: `step` is one step of the training attack from a random start, `noise` is standard Gaussian
noise on the image, as a noise generator gives. `l1 sort` is the threshold of l1 found by its sort
instead of its search.

Budget: an attack that projects onto the ball first and clips to [0, 1] afterwards ends short of the
radius. `distance / radius` is 1 for a spent budget;
`from exact` is the Euclidean distance to the closest allowed point, in units of its displacement.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multirobust.threats import Threat, threats_for
from multirobust.threats.roots import threshold_by_sorting

STEPS = {"linf": 1 / 255, "l2": 30 / 255, "l1": 1.0}
"""Step sizes of the paper's training attacks."""


def main(arguments: list[str] | None = None) -> dict[str, list[dict]]:
    """Run both parts, print them, and return (and save) their rows."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    batches = load(options)
    rows = {
        "about": [about(options)],
        "time": [row for batch in batches for row in time_rows(*batch, options.repeats)],
        "budget": [row for batch in batches for row in budget_rows(*batch)],
    }
    for part in rows.values():
        show(part)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30, help="runs of each, interleaved")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="image sizes")
    parser.add_argument("--images", type=Path, help=".npy or .pt: (n, c, h, w), uint8 or [0, 1]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="save the rows here")
    return parser.parse_args(arguments)


def about(options: argparse.Namespace) -> dict:
    """Describe the machine and the run."""
    cuda = torch.device(options.device).type == "cuda"
    device = torch.cuda.get_device_name() if cuda else platform.machine() or options.device
    return {
        "torch": torch.__version__,
        "device": device,
        "threads": options.threads,
        "repeats": options.repeats,
    }


def load(options: argparse.Namespace) -> list[tuple[str, Tensor]]:
    """Return batches of images in [0, 1], each with the name of where they are from."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        (f"uniform {size}", torch.rand((options.batch, 3, size, size), generator=generator))
        for size in options.sizes
    ]
    if options.images:
        if options.images.suffix == ".npy":
            images = torch.from_numpy(np.load(options.images))
        else:
            images = torch.load(options.images, weights_only=True)
        images = images[: options.batch]
        scale = 255 if images.dtype == torch.uint8 else 1
        batches.append((options.images.stem, images.float() / scale))
    return [(name, images.to(options.device)) for name, images in batches]


def inputs(x: Tensor, threat: Threat) -> dict[str, Tensor]:
    """Return the two displaced batches that the projections are run on."""
    generator = torch.Generator(x.device).manual_seed(1)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    start = threat.sample(x, generator)
    step = start + STEPS[threat.norm] * threat.ascent_direction(noise, start)
    return {"step": step, "noise": x + noise}


@torch.no_grad()
def time_rows(name: str, x: Tensor, repeats: int) -> list[dict]:
    """Time a sort, a copy and each projection in turn; return a row for each projection."""
    tasks: dict[tuple[str, str], Callable[[], object]] = {}
    flat = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x).flatten(1)
    tasks["sort", ""] = lambda: flat.sort(dim=1)
    tasks["copy", ""] = flat.clone
    for norm, threat in threats_for("cifar10").items():
        for kind, x_adv in inputs(x, threat).items():
            tasks[norm, kind] = lambda t=threat, z=x_adv: t.project(z, x)
            if norm == "l1":
                tasks["l1 sort", kind] = lambda t=threat, z=x_adv: threshold(t, z, x)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in tasks}
    for _ in range(repeats + 1):
        for key, task in tasks.items():
            seconds[key].append(clock(task, x.device))
    medians = {key: statistics.median(runs[1:]) for key, runs in seconds.items()}  # after a warm-up
    sort, copy = medians.pop(("sort", "")), medians.pop(("copy", ""))
    return [
        {
            "images": name,
            "norm": norm,
            "input": kind,
            "ms": 1e3 * median,
            "sort ms": 1e3 * sort,
            "copy ms": 1e3 * copy,
            "times a sort": median / sort,
        }
        for (norm, kind), median in medians.items()
    ]


def threshold(threat: Threat, x_adv: Tensor, x: Tensor) -> Tensor:
    """Find the threshold of the l1 projection by sorting its breakpoints, as on a GPU."""
    w = (x_adv - x).flatten(1)
    bound = torch.where(w > 0, 1 - x.flatten(1), x.flatten(1))
    return threshold_by_sorting(w.abs(), bound, w.new_full((1, 1), threat.radius))


def clock(task: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run: of wall time on a GPU, of processor time on a CPU."""
    if device.type != "cuda":
        start = time.process_time()
        task()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    task()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def budget_rows(name: str, x: Tensor) -> list[dict]:
    """Compare project-then-clip with the exact projection, for l2 and l1."""
    return [
        {"images": name, "norm": norm, "input": kind} | compare(threat, x_adv, x)
        for norm, threat in list(threats_for("cifar10").items())[1:]
        for kind, x_adv in inputs(x, threat).items()
    ]


def compare(threat: Threat, x_adv: Tensor, x: Tensor) -> dict:
    """Return the share of the radius that both ways reach, and how far apart they end."""
    exact = threat.project(x_adv, x)
    clipped = (x + onto_ball(threat.norm, x_adv - x, threat.radius)).clamp(0, 1)
    apart = torch.linalg.vector_norm((clipped - exact).flatten(1), dim=1)
    moved = torch.linalg.vector_norm((exact - x).flatten(1), dim=1)
    return {
        "then clip: distance / radius": mean(threat.distance(clipped, x) / threat.radius),
        "exact: distance / radius": mean(threat.distance(exact, x) / threat.radius),
        "then clip: from exact": mean(apart / moved),
    }


def onto_ball(norm: str, w: Tensor, radius: float) -> Tensor:
    """Project w onto the ball alone, by scaling (l2) or a sorted soft threshold (l1).

    References: Duchi, Shalev-Shwartz, Singer and Chandra, Efficient projections onto the l1-ball
    for learning in high dimensions, ICML 2008.
    """
    flat = w.flatten(1)
    if norm == "l2":
        length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return (flat * (radius / length).clamp(max=1)).reshape(w.shape)
    sizes = flat.abs().sort(dim=1, descending=True).values.double()
    counts = torch.arange(1, flat.shape[1] + 1, device=w.device)
    thresholds = (sizes.cumsum(1) - radius) / counts
    last = (sizes > thresholds).sum(1, keepdim=True) - 1
    threshold = thresholds.gather(1, last).clamp(min=0).to(w.dtype)
    return (flat.sign() * (flat.abs() - threshold).clamp(min=0)).reshape(w.shape)


def mean(values: Tensor) -> float:
    """Return the mean over images."""
    return float(values.double().mean())


def show(rows: list[dict]) -> None:
    """Print the rows as a table."""
    cells = [list(rows[0])] + [
        [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print()


if __name__ == "__main__":
    main()
