"""Auto-PGD against the bare passes that it counts, and against the published implementation.

    python benchmarks/apgd.py passes --models small_cnn preact_resnet_18
    python benchmarks/apgd.py reference runs/digits --json results/apgd_vs_reference.json

passes: an attack, and forward and input-gradient passes of the same batch sizes in the same order,
run in turn; the median of the ratios of the rounds. Labels are the model's predictions and radii a
hundredth of those of CIFAR-10, so that next to no image breaks and the batches stay whole.

reference: robust accuracy of both on the first images of the test split, with apgd-ce and apgd-t (9
targets), and what they spent: passes per image, processor time and wall time. "wide" is the
published l1 attack in AutoAttack, which begins in balls of three and two radii. Needs the package
`autoattack` (github.com/fra31/auto-attack) and run folders of `multirobust run`.

Times are processor time on a CPU and wall time on a GPU, unless they say otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from multirobust.attacks import APGD, CrossEntropy, PassMeter, TargetedDLR, attacking
from multirobust.attacks import input_gradient as bare_pass
from multirobust.experiment import find_runs, load_data, load_model
from multirobust.models import build
from multirobust.threats import Threat, threats_for

TARGETS = 9
LOSSES = {
    "ce": {"objective": CrossEntropy()},
    "t": {"objective": TargetedDLR(), "targets": TARGETS},
}


def main(arguments: list[str] | None = None) -> dict:
    """Run one of the two comparisons, print it, and return (and save) its rows."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    result = {"about": about(options), "rows": []}
    for row in options.compare(options):
        result["rows"].append(row)
        print("  ".join(f"{name} {shown(value)}" for name, value in row.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--iterations", type=int, default=100)
    common.add_argument("--norms", nargs="+", default=["linf", "l2", "l1"])
    common.add_argument("--device", default="cpu")
    common.add_argument("--threads", type=int, default=1)
    common.add_argument("--json", type=Path, help="save the rows here")
    kinds = parser.add_subparsers(required=True, dest="kind")
    passes = kinds.add_parser("passes", parents=[common])
    passes.add_argument("--models", nargs="+", default=["small_cnn", "preact_resnet_18"])
    passes.add_argument("--batch", type=int, default=64)
    passes.add_argument("--size", type=int, default=32)
    passes.add_argument("--repeats", type=int, default=3)
    passes.set_defaults(compare=against_passes)
    reference = kinds.add_parser("reference", parents=[common])
    reference.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of them")
    reference.add_argument("--limit", type=int, default=500)
    reference.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    reference.add_argument("--seed", type=int, default=0)
    reference.set_defaults(compare=against_reference)
    return parser.parse_args(arguments)


def about(options: argparse.Namespace) -> dict:
    """Describe the machine and the run."""
    cuda = torch.device(options.device).type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        **{name: value for name, value in vars(options).items() if isinstance(value, int | list)},
        "runs": [path.name for path in getattr(options, "runs", [])],
    }


def shown(value: object) -> str:
    """Return a cell of the printed rows."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def against_passes(options: argparse.Namespace) -> Iterable[dict]:
    """Yield, for each model and norm, the time of the attack and of its bare passes."""
    device = torch.device(options.device)
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((options.batch, 3, options.size, options.size), generator=draw).to(device)
    for name in options.models:
        model = build(name, classes=10).to(device).eval()
        with torch.no_grad():
            y = model(x).argmax(1)
        for norm in options.norms:
            ball = threats_for("cifar10")[norm]
            attack = APGD(threat=type(ball)(ball.radius / 100), iterations=options.iterations)
            row = overhead(model, attack, x, y, options.repeats)
            yield {"model": name, "norm": norm} | row


def overhead(model: nn.Module, attack: APGD, x: Tensor, y: Tensor, repeats: int) -> dict:
    """Time the attack and its bare passes in turn."""

    def attacked() -> None:
        attack(model, x, y)

    sizes = batch_sizes(model, attacked)
    attack_seconds, bare_seconds = [], []
    for _ in range(repeats):
        attack_seconds.append(clock(attacked, x.device))
        bare_seconds.append(clock(lambda: replay(model, x, y, sizes), x.device))
    pairs = zip(attack_seconds, bare_seconds, strict=True)
    ratios = [attack / bare for attack, bare in pairs]
    return {
        "passes_an_image": sum(sizes) / len(x),
        "attack_seconds": statistics.median(attack_seconds),
        "bare_seconds": statistics.median(bare_seconds),
        "ratio": statistics.median(ratios),
        "quartiles": [round(each, 4) for each in np.quantile(ratios, (0.25, 0.75)).tolist()],
        "ratios": [round(each, 4) for each in ratios],
    }


def batch_sizes(model: nn.Module, task: Callable[[], object]) -> list[int]:
    """Return the sizes of the batches that a task asks the model about."""
    sizes: list[int] = []
    handle = model.register_forward_hook(lambda module, inputs, _: sizes.append(len(inputs[0])))
    task()
    handle.remove()
    return sizes


def replay(model: nn.Module, x: Tensor, y: Tensor, sizes: list[int]) -> None:
    """Pass batches of these sizes forward, and the gradient of the loss back to the images."""
    with attacking(model):
        for size in sizes:
            labels = y[:size]
            bare_pass(
                model, x[:size], lambda z, labels=labels: CrossEntropy().of(z, labels, labels)
            )


def clock(task: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run: of wall time on a GPU, of processor time on a CPU."""
    read = time.perf_counter if device.type == "cuda" else time.process_time
    start = read()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return read() - start


def against_reference(options: argparse.Namespace) -> Iterable[dict]:
    """Yield, for each model, norm and loss, accuracy and cost of both implementations."""
    for run in find_runs(options.runs):
        data = load_data(run.recipe.data)
        model = load_model(run, data).to(options.device).eval()
        split = data.test.first(options.limit)
        x, y = split.floats().to(options.device), split.labels.to(options.device)
        with torch.no_grad():
            right = model(x).argmax(1) == y
        for norm in options.norms:
            threat = threats_for(run.recipe.threats.preset)[norm]
            for loss in options.losses:
                tasks = competitors(model, x[right], y[right], threat, loss, options)
                row = {"run": run.name, "norm": norm, "loss": loss, "images": len(x)}
                row["clean"] = 100 * float(right.float().mean())
                for name, task in tasks.items():
                    measured = measure(model, task, x[right], y[right], threat, len(x))
                    row |= {f"{name}_{key}": value for key, value in measured.items()}
                yield row


def competitors(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, loss: str, options: argparse.Namespace
) -> dict[str, Callable[[], Tensor]]:
    """Return ours and the published attacks, to be run in turn."""
    from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    attack = APGD(threat=threat, iterations=options.iterations, **LOSSES[loss])
    settings = {
        "n_iter": options.iterations,
        "norm": threat.norm.capitalize(),
        "eps": threat.radius,
        "seed": options.seed,
        "device": options.device,
    }

    def ours() -> Tensor:
        generator = torch.Generator(x.device).manual_seed(options.seed)
        return attack(model, x, y, generator=generator)

    def published(**more: object) -> Tensor:
        if loss == "t":
            targets = min(TARGETS, model(x[:1]).shape[1] - 1)
            attacker = APGDAttack_targeted(model, n_target_classes=targets, **settings, **more)
        else:
            attacker = APGDAttack(model, loss="ce", **settings, **more)
        return attacker.perturb(x, y)

    tasks = {"ours": ours, "reference": published}
    if threat.norm == "l1":
        tasks["wide"] = lambda: published(use_largereps=True)
    return tasks


def measure(
    model: nn.Module, task: Callable[[], Tensor], x: Tensor, y: Tensor, threat: Threat, images: int
) -> dict[str, float]:
    """Return accuracy in percent, passes for each of the images, seconds, and the largest excess.

    The excess is that of the distance over the radius, as a share of it, in float64.
    """
    meter = PassMeter(model)
    start, wall = time.process_time(), time.perf_counter()
    with meter:
        x_adv = task().detach()
    spent, waited = time.process_time() - start, time.perf_counter() - wall
    with torch.no_grad():
        standing = int((model(x_adv).argmax(1) == y).sum())
    excess = threat.distance(x_adv.double(), x.double()) / threat.radius - 1
    return {
        "accuracy": 100 * standing / images,
        "forwards": meter.forwards / images,
        "backwards": meter.backwards / images,
        "cpu_seconds": spent,
        "wall_seconds": waited,
        "excess": max(0.0, float(excess.max())),
    }


if __name__ == "__main__":
    main()
