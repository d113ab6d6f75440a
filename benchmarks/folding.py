"""Input-gradient passes with BatchNorm folded, against the same passes of the model itself.

    python benchmarks/folding.py --output results/folding.json

Attacks that use running statistics pass a model in evaluation mode: each BatchNorm is a multiply
and an add, and can be folded into the convolution before it, or be one operation
(`models.folding.Folded`). A round times a forward and backward pass to the images of either, in
turn, which of them is first alternating; the seconds are processor time. Reported for each model:
the ratio of the rounds (median and quartiles; below 1, folding is faster), the time of folding
itself, and how far logits (as a share of the largest) are apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multirobust import models
from multirobust.models.folding import Folded
from multirobust.provenance import provenance

CASES = {"small_cnn": 128, "preact_resnet_18": 32, "wrn_28_2": 32}
"""Models, with the images of a batch."""


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the processor time of some work; on a GPU its wall time."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    before = clock()
    work()
    if cuda:
        torch.cuda.synchronize()
    return clock() - before


def used(name: str, size: int, batch: int, device: torch.device) -> tuple[nn.Module, Tensor]:
    """Return a model whose running statistics are those of some images, and the images."""
    model = models.build(name, classes=10, channels=3, seed=0).to(device).train()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, size, size, generator=generator).to(device)
    with torch.no_grad():
        for _ in range(3):
            model(x)
    return model.eval().requires_grad_(False), x


def measured(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time one model and its folded copy."""
    device = torch.device(options.device)
    model, x = used(name, options.size, batch, device)
    folded, y = Folded(model), torch.arange(batch, device=device) % 10

    def gradient(net: nn.Module) -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(nn.functional.cross_entropy(net(leaf), y), leaf)

    rounds = []
    for i in range(options.rounds + 1):
        pair = (model, folded) if i % 2 else (folded, model)
        spent = {net: seconds_of(lambda net=net: gradient(net), device) for net in pair}
        rounds.append((spent[model], spent[folded]))
    plain, other = zip(*rounds[1:], strict=True)
    ratios = sorted(b / a for a, b in zip(plain, other, strict=True))
    quarters = statistics.quantiles(ratios, n=4)
    refreshing = [seconds_of(folded.refresh, device) for _ in range(5)]
    with torch.no_grad():
        logits, others = model(x), folded(x)
    return {
        "model": name,
        "batch": batch,
        "folded_into_convolutions": len(folded._folds),
        "multiply_adds": len(folded._scales),
        "seconds": round(statistics.median(plain), 5),
        "seconds_folded": round(statistics.median(other), 5),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(quarters[0], 3), round(quarters[2], 3)],
        "seconds_to_fold": round(statistics.median(refreshing), 5),
        "logits_apart": float(f"{(logits - others).abs().max() / logits.abs().max():.2g}"),
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, help="images, in place of those of each model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the result, and return (and save) it."""
    options = parsed(given)
    torch.set_num_threads(options.threads)
    rows = [measured(name, options.batch or CASES[name], options) for name in options.models]
    content = {"benchmark": "folding", "rounds": options.rounds, "size": options.size}
    content |= {"note": options.note, "rows": rows, **provenance(options.device)}
    text = json.dumps(content, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", "utf-8")
    return content


if __name__ == "__main__":
    main()
