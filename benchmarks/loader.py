"""Time of the batches from the host and from the device, against batches that lie ready.

    python benchmarks/loader.py --output results/loader.json

The same seeded batches of random images are made in three ways: from a set on the device, from the
same set in host memory, and, on the disk, from a file that is mapped. `bare` is a loop over batches
that lie ready as float32 on the device. `training_steps` takes a step of `small_cnn` with each
batch, as the cheapest training would; `batches_alone` does nothing with it, so that nothing hides
the time of gathering. Rounds of all four alternate, in changing order; a round is an epoch, its
first batch apart.

`wall` is what passes, `processor` the time on all cores, which other work on the machine does not
lengthen. Ratios are medians and quartiles of the rounds. Batches are compared bit by bit before
anything is timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from multirobust import models
from multirobust.data import Batch, CropFlip, Loader, Split
from multirobust.provenance import provenance

WAYS = ("bare", "device", "host", "disk")


def images_of(options: argparse.Namespace) -> Split:
    """Return random images."""
    g = torch.Generator().manual_seed(0)
    shape = (options.images, 3, options.size, options.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    return Split(images, torch.randint(0, 10, (options.images,), generator=g))


def loaders_of(split: Split, folder: Path, options: argparse.Namespace) -> dict[str, Loader]:
    """Return a loader for each place."""
    np.save(folder / "images.npy", split.images.numpy())
    stored = np.load(folder / "images.npy", mmap_mode="c")
    mapped = Split(torch.from_numpy(stored), split.labels)
    common: dict[str, Any] = {"batch_size": options.batch, "seed": 0, "device": options.device}
    common["augmentation"] = CropFlip(4)
    return {
        "device": Loader(split, placement="device", **common),
        "host": Loader(split, placement="host", **common),
        "disk": Loader(mapped, placement="host", **common),
    }


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches are the same, bit by bit."""
    pairs = ((one.x, other.x), (one.y, other.y), (one.index, other.index))
    return all(torch.equal(a, b) for a, b in pairs)


def step_of(options: argparse.Namespace) -> Callable[[Batch], object]:
    """Return what is done with a batch."""
    if not options.step:
        return lambda batch: None
    model = models.build("small_cnn", classes=10, channels=3, seed=0).to(options.device)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(batch: Batch) -> None:
        sgd.zero_grad()
        nn.functional.cross_entropy(model(batch.x), batch.y).backward()
        sgd.step()

    return step


def seconds(
    batches: Iterable[Batch], step: Callable[[Batch], object], device: str
) -> dict[str, float]:
    """Return the time that a batch of an epoch takes, but the first, and that of the processor."""

    def now() -> tuple[float, float]:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    rest = iter(batches)
    step(next(rest))
    (wall, processor), count = now(), 0
    for batch in rest:
        step(batch)
        count += 1
    then = now()
    return {"wall": (then[0] - wall) / count, "processor": (then[1] - processor) / count}


def measured(loaders: dict[str, Loader], options: argparse.Namespace) -> dict[str, Any]:
    """Time all four, in alternating rounds."""
    step, ready = step_of(options), list(loaders["device"].epoch(0))
    spent: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(options.rounds + 1):
        for way in itertools.islice(itertools.cycle(WAYS), turn, turn + len(WAYS)):
            batches = ready if way == "bare" else loaders[way].epoch(0)
            spent[way].append(seconds(batches, step, options.device))

    def ratio(way: str, base: str, clock: str) -> list[float]:
        pairs = zip(spent[way][1:], spent[base][1:], strict=True)
        low, middle, high = statistics.quantiles([a[clock] / b[clock] for a, b in pairs], n=4)
        return [round(middle, 3), round(low, 3), round(high, 3)]

    rows: dict[str, Any] = {}
    for way in WAYS:
        rows[way] = row = {}
        for clock in ("wall", "processor"):
            middle = statistics.median(one[clock] for one in spent[way][1:])
            row[f"{clock}_milliseconds_a_batch"] = round(1e3 * middle, 3)
            if way != "bare" and options.step:
                row[f"{clock}_to_bare"] = ratio(way, "bare", clock)
            if way in ("host", "disk"):
                row[f"{clock}_to_device"] = ratio(way, "device", clock)
    return rows


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the result, and return (and save) it."""
    options = parsed(given)
    torch.set_num_threads(options.threads)
    names = ("images", "size", "batch", "rounds", "note")
    content: dict[str, Any] = {"benchmark": "loader"} | {n: getattr(options, n) for n in names}
    with tempfile.TemporaryDirectory() as folder:
        loaders = loaders_of(images_of(options), Path(folder), options)
        for way in ("host", "disk"):
            pairs = zip(loaders["device"].epoch(0), loaders[way].epoch(0), strict=True)
            if not all(same(a, b) for a, b in pairs):
                raise SystemExit(f"the batches from the {way} are others than those of the device")
        for name, options.step in (("training_steps", True), ("batches_alone", False)):
            content[name] = measured(loaders, options)
    content |= provenance(options.device)
    text = json.dumps(content, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", "utf-8")
    return content


if __name__ == "__main__":
    main()
