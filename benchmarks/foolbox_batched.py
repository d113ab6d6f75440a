"""The minimum-norm attacks on whole batches against foolbox on one image at a time.

    python benchmarks/foolbox_batched.py runs/digits --json results/foolbox_batched.json

Of each attack, in turn: ours on a batch, and foolbox's as the paper's code calls it, once for every
image, on the first few of the same images. "seconds" are of processor time for each image;
"called" stops at the radius, as an evaluation does, "searched" goes on to the least distance.
"distance" is the median over the images that both attacked and for which both found one. All
iterations are divided by --divisor, for both alike. foolbox's Brendel-Bethge gets a starting point,
an image of another class: with one image at a time foolbox's `DatasetAttack` never finds one, since
it draws as many candidates as the batch has other images.

Needs the extra `foolbox` and run folders of `multirobust run`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multirobust.attacks import BrendelBethge, CarliniWagner, ElasticNet, PassMeter, SaltAndPepper
from multirobust.attacks.minimum_norm import MinimumNorm
from multirobust.experiment import find_runs, load_data, load_model
from multirobust.threats import Threat, threats_for

ATTACKS = ("bb_linf", "bb_l2", "bb_l1", "cw_l2", "ead_l1", "salt_and_pepper_l1")


def main(arguments: list[str] | None = None) -> dict:
    """Compare the attacks on every run, print and return (and save) the rows."""
    options = parse(arguments)
    torch.set_num_threads(1)
    result = {"about": about(options), "rows": []}
    for row in compare(options):
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
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of them")
    parser.add_argument("--data-folder", help="where the images are, if not where the recipe says")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--batch", type=int, default=64, help="images of our batch")
    parser.add_argument("--single", type=int, default=8, help="images given to foolbox in turn")
    parser.add_argument("--divisor", type=int, default=5, help="of the paper's iterations")
    parser.add_argument("--json", type=Path, help="save the rows here")
    return parser.parse_args(arguments)


def about(options: argparse.Namespace) -> dict:
    """Describe the machine and the run."""
    return {
        "torch": torch.__version__,
        "foolbox": _foolbox().__version__,
        "device": platform.machine(),
        "threads": torch.get_num_threads(),
        **{name: value for name, value in vars(options).items() if isinstance(value, int | list)},
        "runs": [path.name for path in options.runs],
    }


def shown(value: object) -> str:
    """Return a cell of the printed rows."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def compare(options: argparse.Namespace) -> Iterable[dict]:
    """Yield the comparison of each attack on each run."""
    for run in find_runs(options.runs):
        config = run.recipe.data
        if options.data_folder and hasattr(config, "folder"):
            config = config.model_copy(update={"folder": options.data_folder})
        data = load_data(config)
        model = load_model(run, data).eval()
        split = data.test.first(4 * options.batch)
        x, y = split.floats(), split.labels
        with torch.no_grad():
            right = (model(x).argmax(1) == y).nonzero().squeeze(1)[: options.batch]
        x, y = x[right], y[right]
        balls = threats_for(run.recipe.threats.preset)
        for name in options.attacks:
            attack = ours(name, balls[name.rsplit("_", 1)[1]], options.divisor)
            peer = foolbox_attack(name, options.divisor)
            shape = "x".join(map(str, x.shape[1:]))
            yield {"run": run.name, "shape": shape, "attack": name} | row(
                model, attack, peer, x, y, min(options.single, len(x))
            )


def ours(name: str, ball: Threat, divisor: int) -> MinimumNorm:
    """Return our attack, with the paper's iterations divided."""
    if name.startswith("bb"):
        return BrendelBethge(threat=ball, steps=max(1, 1000 // divisor))
    if name.startswith("cw"):
        return CarliniWagner(threat=ball, steps=max(1, 200 // divisor))
    if name.startswith("ead"):
        return ElasticNet(threat=ball, steps=max(1, 1000 // divisor))
    return SaltAndPepper(threat=ball, steps=max(1, 1000 // divisor))


def foolbox_attack(name: str, divisor: int) -> Any:
    """Return foolbox's attack, compiled, with the same iterations."""
    attacks = _foolbox().attacks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that compiling takes time
        if name.startswith("bb"):
            kinds = {"linf": "Linfinity", "l2": "L2", "l1": "L1"}
            kind = getattr(attacks, kinds[name.split("_")[1]] + "BrendelBethgeAttack")
            return kind(steps=max(1, 1000 // divisor))
    if name.startswith("cw"):
        return attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=max(1, 200 // divisor))
    if name.startswith("ead"):
        return attacks.EADAttack(
            decision_rule="L1", binary_search_steps=5, steps=max(1, 1000 // divisor)
        )
    return attacks.SaltAndPepperNoiseAttack(steps=max(1, 1000 // divisor))


def row(
    model: nn.Module, attack: MinimumNorm, peer: Any, x: Tensor, y: Tensor, single: int
) -> dict:
    """Run in turn ours, foolbox on half of its images, our search, and foolbox on the rest."""
    one_by_one = one_image_at_a_time(model, peer, attack.threat, x, y)
    one_by_one(range(1))  # compiles, and imports
    half = max(1, single // 2)
    called = measured(model, lambda: attack(model, x, y))
    first = measured(model, lambda: one_by_one(range(half)))
    searched = measured(model, lambda: attack.search(model, x, y))
    rest = measured(model, lambda: one_by_one(range(half, single)))
    foolbox_images = torch.cat((first[0], rest[0]))
    foolbox_seconds = (first[1] + rest[1]) / len(foolbox_images)
    distance = attack.threat.distance(searched[0], x)
    fooled = wrong(model, searched[0], y)
    theirs = attack.threat.distance(foolbox_images, x[: len(foolbox_images)])
    both = wrong(model, foolbox_images, y[: len(foolbox_images)]) & fooled[: len(foolbox_images)]
    return {
        "images": len(x),
        "single": len(foolbox_images),
        "standing": 100 * float((~(fooled & (distance <= attack.threat.radius))).float().mean()),
        "called_seconds": called[1] / len(x),
        "searched_seconds": searched[1] / len(x),
        "foolbox_seconds": foolbox_seconds,
        "called_speedup": foolbox_seconds * len(x) / called[1],
        "searched_speedup": foolbox_seconds * len(x) / searched[1],
        "called_passes": called[2] / len(x),
        "searched_passes": searched[2] / len(x),
        "foolbox_passes": (first[2] + rest[2]) / len(foolbox_images),
        "distance": median(distance[: len(theirs)][both]),
        "foolbox_distance": median(theirs[both]),
    }


def one_image_at_a_time(
    model: nn.Module, peer: Any, threat: Threat, x: Tensor, y: Tensor
) -> Callable[[Iterable[int]], Tensor]:
    """Return what runs foolbox's attack on each of some images, and returns its images."""
    foolbox = _foolbox()
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    needs_start = "BrendelBethge" in type(peer).__name__

    def attacked(indices: Iterable[int]) -> Tensor:
        found = []
        for i in indices:
            more = {}
            if needs_start:
                other = (y != y[i]).nonzero()[0]
                more = {"starting_points": x[other]}
            image, label = x[i : i + 1], y[i : i + 1]
            found.append(peer(wrapped, image, label, epsilons=[threat.radius], **more)[0][0])
        return torch.cat(found)

    return attacked


def measured(model: nn.Module, task: Callable[[], Tensor]) -> tuple[Tensor, float, int]:
    """Return the images of a task, its seconds of processor time, and its passes."""
    meter = PassMeter(model)
    start = time.process_time()
    with meter:
        images = task()
    seconds = time.process_time() - start
    return images.detach(), seconds, meter.forwards + meter.backwards


def median(values: Tensor) -> float | None:
    """Return the median, None of nothing: JSON knows no NaN."""
    return float(values.median()) if len(values) else None


@torch.no_grad()
def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Tell which images the model gets wrong."""
    return model(x).argmax(1) != y


def _foolbox() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    return foolbox


if __name__ == "__main__":
    main()
