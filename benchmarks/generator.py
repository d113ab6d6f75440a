"""Maps of noise into a ball, and what the step of MNG-AC's noise generator is worth.

    OMP_NUM_THREADS=1 python benchmarks/generator.py --output results/generator.json
    python benchmarks/generator.py --recipe cifar10_small --data-folder DATA --norms linf

First, on random images of CIFAR's size, with noise of a fresh generator, for each map and norm:
the share of the generator's outputs that a random gradient reaches ("live"); how evenly it reaches
them ("even": (sum |g|)^2 / (n sum g^2) over that of the gradient before the map); the mean distance
over the radius ("reach"); and the time, forward and backward, over that of the hard projection.

Then, in short trainings of MNG-AC against one norm, the meta-loss: the cross-entropy on adversarial
images after one look-ahead step of the classifier on augmented images (Eq. 9 and 10). On each batch
are compared, always at the same classifier:

    step        before the generator's step - after it, same batch and z; what Eq. 10 promises
    training    the generator as it was drawn - as it is trained so far, same fresh z
    gaussian    Gaussian noise through the same map - the trained generator
    uniform     a point drawn uniformly from the ball - the trained generator
    clean       the clean images, no noise at all - the trained generator

Positive means that the trained generator has the lower meta-loss. Numbers are means over the steps
and, of those, over the seeds, with a 95 % interval by Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from multirobust.attacks import UniformSampler, attacking, attacks_from, threats_from
from multirobust.config import Recipe, load_recipe
from multirobust.data import Batch, Data, Loader
from multirobust.defenses import MNGAC, GaussianNoise, UniformNoise
from multirobust.defenses.base import cross_entropy
from multirobust.evaluation import student_half
from multirobust.experiment.building import build_model, load_data
from multirobust.files import atomic_write
from multirobust.metagrad import call_with, look_ahead_loss
from multirobust.models import NoiseGenerator
from multirobust.provenance import provenance
from multirobust.threats import BALL_MAPS, BallMap, Threat, threats_for
from multirobust.training.schedule import Triangular

GAINS = ("step", "training", "gaussian", "uniform", "clean")


def main(arguments: list[str] | None = None) -> dict:
    """Measure maps and steps, print two tables, and return (and with --output save) the numbers."""
    options = parse(arguments)
    torch.set_num_threads(1)
    result = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "provenance": provenance(),
        "maps": list(maps(options)),
        "steps": [],
    }
    recipe = load_recipe(options.recipe, options.overrides)
    if options.data_folder:
        config = recipe.data.model_copy(update={"folder": options.data_folder})
        recipe = recipe.model_copy(update={"data": config})
    data = load_data(recipe.data)
    for norm, name, rate in product(options.norms, options.maps, options.rates):
        row = {"norm": norm, "map": name, "rate": rate}
        runs = [trained(recipe, data, norm, name, rate, seed, options) for seed in options.seeds]
        row |= {key: interval([run[key] for run in runs]) for key in runs[0]}
        result["steps"].append(row)
        print(shown(row, ("live", *GAINS)), flush=True)
        if options.output:
            atomic_write(options.output, (json.dumps(result, indent=1) + "\n").encode())
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="digits", help="whose data, model, attacks, schedule")
    parser.add_argument("--data-folder", help="where the files of the data set lie")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="overrides")
    parser.add_argument("--steps", type=int, default=32, help="length of a training")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--norms", nargs="+", default=["linf", "l2", "l1"])
    parser.add_argument("--maps", nargs="+", default=list(BALL_MAPS), choices=list(BALL_MAPS))
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 30.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=20, help="of each timing")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    return parser.parse_args(arguments)


def maps(options: argparse.Namespace) -> Iterator[dict]:
    """Yield a row for each norm and map, at the radii of the paper."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(options.batch, 3, 32, 32, generator=draw)
    network = NoiseGenerator(3)
    with torch.no_grad():
        noise = network(network.draw(x, draw), x)
    gradient = torch.randn(x.shape, generator=draw)
    for norm, threat in threats_for("cifar10").items():
        clocks = {name: [] for name in BALL_MAPS}
        for _ in range(options.repeats):  # in turn, so that other load meets all alike
            for name, to_ball in BALL_MAPS.items():
                start = time.perf_counter()
                images, back = passed(to_ball, threat, noise, x, gradient)
                clocks[name].append(time.perf_counter() - start)
        for name, to_ball in BALL_MAPS.items():
            images, back = passed(to_ball, threat, noise, x, gradient)
            row = {
                "norm": norm,
                "map": name,
                "live": (back != 0).double().mean().item(),
                "even": evenness(back) / evenness(gradient),
                "reach": (threat.distance(images, x) / threat.radius).mean().item(),
                "seconds": min(clocks[name]),
                "time_ratio": min(clocks[name]) / min(clocks["project"]),
            }
            print(shown(row, ("live", "even", "reach", "time_ratio")), flush=True)
            yield row


def passed(
    to_ball: BallMap, threat: Threat, noise: Tensor, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the images, and the gradient by the noise."""
    leaf = noise.clone().requires_grad_()
    images = to_ball(threat, leaf, x)
    return images.detach(), torch.autograd.grad(images, leaf, gradient)[0]


def evenness(gradient: Tensor) -> float:
    """Return 1 for entries of one size, and 1 / n if all but one are zero."""
    g = gradient.double().flatten().abs()
    return (g.sum().square() / (len(g) * g.square().sum())).item()


def trained(
    recipe: Recipe,
    data: Data,
    norm: str,
    name: str,
    rate: float,
    seed: int,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Train for some steps, and return the means over them of what is compared."""
    pgd = attacks_from(recipe.attack, threats_from(recipe.threats))[norm]
    model = build_model(recipe, data, seed).train()
    noise = NoiseGenerator(data.channels, seed=seed)
    settings = {"beta": recipe.defense.beta, "rate": rate, "ball_map": BALL_MAPS[name]}
    defense = MNGAC(UniformSampler([pgd], seed=seed), noise, meta_report=True, **settings)
    drawn = copy.deepcopy(noise)
    training = recipe.training
    # one step more than is taken: the last one has a learning rate of 0, and nothing to measure
    schedule = Triangular(training.peak_lr, training.peak_at)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=training.momentum)
    totals: dict[str, float] = {}
    batches = batches_of(data, options.batch, seed)
    for step in range(options.steps):
        batch, lr = next(batches), schedule.apply(optimizer, (step + 1) / (options.steps + 1))
        generator = torch.Generator().manual_seed(1000 * seed + step)
        with attacking(model, "batch"):
            views = defense.craft(model, batch, generator=generator)
        found = compared(defense, drawn, model, batch, views.x_adv, lr)
        views = defense.adapt(model, batch, views, lr=lr, generator=generator)
        found["step"] = (views.terms["meta_loss_before"] - views.terms["meta_loss_after"]).item()
        found["meta_loss"] = views.terms["meta_loss_before"].item()
        found["live"] = views.terms["live_gradient"].item()
        optimizer.zero_grad(set_to_none=True)
        defense.loss(model, batch, views).total.backward()
        optimizer.step()
        for key, value in found.items():
            totals[key] = totals.get(key, 0.0) + value / options.steps
    if not all(map(math.isfinite, totals.values())):
        raise SystemExit(f"{norm}, {name}, rate {rate}, seed {seed}: the training diverged.")
    return totals


def batches_of(data: Data, size: int, seed: int) -> Iterator[Batch]:
    """Yield full batches, epoch after epoch."""
    loader = Loader(data.train, batch_size=size, augmentation=data.augmentation, seed=seed)
    epoch = 0
    while True:
        yield from (batch for batch in loader.epoch(epoch) if len(batch.x) == size)
        epoch += 1


def compared(
    defense: MNGAC, drawn: NoiseGenerator, model: nn.Module, batch: Batch, x_adv: Tensor, lr: float
) -> dict[str, float]:
    """Return how much greater the meta-loss of each other noise is, on one batch and one z."""
    threat, to_ball, x = defense.sampler.attacks[0].threats[0], defense.ball_map, batch.x
    generator = torch.Generator().manual_seed(int(batch.index.sum()))
    z = defense.noise.draw(x, generator)
    with torch.no_grad():
        views = {
            "own": to_ball(threat, defense.noise(z, x), x),
            "training": to_ball(threat, drawn(z, x), x),
            "gaussian": GaussianNoise(to_ball)(threat, x, generator),
            "uniform": UniformNoise()(threat, x, generator),
            "clean": x,
        }
    losses = {name: meta_loss(model, batch, view, x_adv, lr) for name, view in views.items()}
    own = losses.pop("own")
    return {name: loss - own for name, loss in losses.items()}


def meta_loss(model: nn.Module, batch: Batch, x_aug: Tensor, x_adv: Tensor, lr: float) -> float:
    """Return the adversarial loss after one look-ahead step on the augmented images."""

    def inner(theta: dict[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
        return cross_entropy(call_with(model, theta, phi[0]), batch.y)

    def outer(theta: dict[str, Tensor]) -> Tensor:
        return cross_entropy(call_with(model, theta, x_adv), batch.y)

    with attacking(model, "batch"):
        theta = dict(model.named_parameters())
        return look_ahead_loss(inner, outer, theta, (x_aug,), lr=lr).item()


def interval(values: list[float]) -> dict[str, float | list[float] | None]:
    """Return the mean, half the width of its 95 % interval (None for one value), and the values."""
    return {"mean": sum(values) / len(values), "half": student_half(values), "values": values}


def shown(row: dict, keys: tuple[str, ...]) -> str:
    """Return a row as one line."""
    parts = [f"{row['norm']:4} {row['map']:23} {row.get('rate', ''):4}"]
    for key in keys:
        value = row[key]
        if isinstance(value, dict):
            half = value["half"]
            text = f"{value['mean']:.5f}" + ("" if half is None else f" +- {half:.5f}")
        else:
            text = f"{value:.4f}"
        parts.append(f"{key} {text}")
    return "  ".join(parts)


if __name__ == "__main__":
    main()
