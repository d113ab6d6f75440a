"""Attacks, whole training steps and the consistency loss, beside the bare passes that they need."""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from comparison import Row, alternate
from passes import Clock, Needs, Times, arms_of, time_bare, time_steps
from slices import Deadline
from step_time import Case, loop_of
from torch import Tensor, nn
from torch.nn import functional as F

from multirobust.attacks import (
    PGD,
    CrossEntropy,
    LockstepAPGD,
    PassMeter,
    attacking,
    attacks_from,
    input_gradient,
    threats_from,
)
from multirobust.config import Recipe, load_recipe
from multirobust.data import Batch
from multirobust.defenses import ConsistencyViews, consistency_loss
from multirobust.models import build
from multirobust.threats import Linf
from multirobust.training.loop import Loop

__all__ = ["attack_rows", "batch_of", "consistency_rows", "model_of", "step_rows"]

BARE = "bare passes"
GOALS_FOR = frozenset({"preact_resnet_18", "wrn_28_2"})
"""Networks whose passes are long enough for a goal; small_cnn is there to show what is not."""
CHEAP = ["defense.meta_share=0.25", "defense.meta_every=3"]
STEPS: dict[str, tuple[str, list[str], float | None, str]] = {
    "sat": ("sat", [], 1.08, "limit"),
    "adv_linf": ("adv_linf", [], 1.08, "limit"),
    "adv_l2": ("adv_l2", [], 1.08, "limit"),
    "adv_l1": ("adv_l1", [], 1.08, "limit"),
    "trades": ("trades", [], None, "limit"),
    "adv_avg": ("adv_avg", [], None, "limit"),
    "adv_max": ("adv_max", [], None, "limit"),
    "msd": ("msd", [], None, "limit"),
    "sat_ac": ("sat_ac", [], None, "limit"),
    "mng_ac": ("mng_ac", [], 1.05, "limit"),
    "mng_ac, a quarter of the batch": ("mng_ac", CHEAP[:1], None, "limit"),
    "mng_ac, a quarter, every third step": ("mng_ac", CHEAP, 1.25, "reference"),
}
"""Of each case its defense, changes of the recipe, the goal of the issue and the ratio it is of."""


def batch_of(options: argparse.Namespace, count: int = 1) -> tuple[Tensor, Tensor]:
    """Return random images and labels, `count` batches of them."""
    draw = torch.Generator().manual_seed(options.seed)
    images = count * options.batch
    x = torch.rand((images, 3, options.size, options.size), generator=draw)
    return x, torch.randint(10, (images,), generator=draw)


def _recipe(model: str, options: argparse.Namespace, changes: Iterable[str] = ()) -> Recipe:
    return load_recipe(options.recipe, [*options.set, *changes, f"model.name={model}"])


def model_of(name: str, options: argparse.Namespace) -> nn.Module:
    """Return a network in training mode, with the options that the recipe gives it."""
    widths = _recipe(name, options).model.widths
    more = {"widths": widths} if widths else {}
    return build(name, classes=10, seed=options.seed, **more).train()


def attack_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Compare each training attack with foolbox's, and with its bare passes."""
    recipe = _recipe(options.models[0], options)
    pgd = attacks_from(recipe.attack, threats_from(recipe.threats))
    steps = options.attack_steps
    x, y = batch_of(options)
    for name in options.models:
        model = model_of(name, options)
        for norm, attack in pgd.items():
            yield _attack_row(name, norm, model, replace(attack, steps=steps), x, y, options)
        for norm, attack in pgd.items():
            apgd = LockstepAPGD(threat=attack.threat, steps=steps)
            yield _attack_row(name, norm, model, apgd, x, y, options)


def _attack_row(
    name: str,
    norm: str,
    model: nn.Module,
    attack: PGD | LockstepAPGD,
    x: Tensor,
    y: Tensor,
    options: argparse.Namespace,
) -> Row:
    def ours() -> None:
        with attacking(model, "batch"):
            attack(model, x, y)

    with PassMeter(model) as meter:
        ours()
    gradients, forwards = (count // len(x) for count in (meter.backwards, meter.forwards))

    def bare() -> None:
        with attacking(model, "batch"):
            for _ in range(gradients):
                input_gradient(model, x, lambda logits: CrossEntropy().of(logits, y, y))
            with torch.no_grad():
                for _ in range(forwards - gradients):
                    model(x)

    tasks = {"ours": ours, "limit": bare}
    reference = "foolbox's PGD of as many steps"
    found = alternate({**tasks, "reference": _foolbox(model, norm, attack, x, y)}, options.rounds)
    kind = "pgd" if isinstance(attack, PGD) else "training apgd"
    case = f"{kind} {norm}, {attack.steps} steps"
    return Row(
        part="attack", model=name, case=case, unit="s",
        goal=1.05 if name in GOALS_FOR else None,
        reference_name=reference, limit_name=BARE, **found,
    )  # fmt: skip


class _Lent(nn.Module):
    """A network in training mode that says it is not, which foolbox would warn of."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _foolbox(
    model: nn.Module, norm: str, attack: PGD | LockstepAPGD, x: Tensor, y: Tensor
) -> Callable[[], object]:
    """Return foolbox's PGD with random start, on the same batch, as its users call it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

    kinds = {
        "linf": foolbox.attacks.LinfPGD,
        "l2": foolbox.attacks.L2PGD,
        "l1": foolbox.attacks.L1PGD,
    }
    radius = attack.threat.radius
    theirs = kinds[norm](abs_stepsize=radius / 4, steps=attack.steps)

    def run() -> None:
        lent = foolbox.PyTorchModel(_Lent(model), bounds=(0, 1), device="cpu")
        criterion = foolbox.criteria.Misclassification(y)
        theirs.run(lent, x.clone(), criterion, epsilon=radius)

    return run


@final
@dataclass
class _Measured:
    """A training of one case, and what its rounds took."""

    loop: Loop
    needs: Callable[[Times], Needs]
    seconds: list[float] = field(default_factory=list)
    bare: list[dict[str, float]] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    def round(self, clock: Clock) -> None:
        """Time the bare passes once, and a step with each attack."""
        times = Times(arms_of(self.loop.job.defense))
        with self.loop.runtime.reproducible():
            self.bare.append(time_bare(self.loop, 1, clock))
        time_steps(self.loop, times, clock, Deadline(None), untimed=0)
        self.seconds.append(statistics.fmean(times.steps[0]))
        self.times = times

    def limit(self, after: dict[str, float]) -> None:
        """Take the bare passes before and after the steps for what they cannot do without."""
        before = self.bare[-1]
        mean = {name: (before[name] + after[name]) / 2 for name in before}
        self.limits.append(self.needs(self.times).limit(mean))


def step_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Compare a whole training step of each defense with one of SAT, and with its bare passes."""
    wanted = {case: STEPS[case] for case in STEPS if case in options.cases}
    for model in options.models:
        runs = {case: _measured(model, *how[:2], options) for case, how in wanted.items()}
        clock = Clock(torch.device("cpu"))
        for _ in range(options.rounds):
            measured: list[_Measured] = []
            for run in runs.values():
                run.round(clock)
                if measured:
                    measured[-1].limit(run.bare[-1])
                measured.append(run)
            with measured[-1].loop.runtime.reproducible():
                measured[-1].limit(time_bare(measured[-1].loop, 1, clock))
        first = next(iter(runs))
        for case, run in runs.items():
            yield Row(
                part="step", model=model, case=case, unit="s", ours=tuple(run.seconds),
                reference_name=f"a step of {first}", reference=tuple(runs[first].seconds),
                limit_name=BARE, limit=tuple(run.limits), 
                goal=wanted[case][2] if model in GOALS_FOR else None,
                goal_of=wanted[case][3],
            )  # fmt: skip


def _measured(
    model: str, defense: str, changes: list[str], options: argparse.Namespace
) -> _Measured:
    """Return a training of random images, and what its step needs."""
    settings = argparse.Namespace(
        recipe=options.recipe, set=[*options.set, *changes], repeats=options.rounds,
        batch=options.batch, size=options.size, device="cpu",
    )  # fmt: skip
    loop = loop_of(Case(model, "float32", defense), settings)
    config = _recipe(model, options, changes).defense

    def needs(times: Times) -> Needs:
        found = Needs.of(defense, times.forwards, times.backwards)
        if not found.second_order:
            return found
        count = max(round(config.meta_share * options.batch), min(2, options.batch))
        share = count / options.batch / config.meta_every
        return replace(found, training=found.training - 2 + 2 * share, second_order=share)

    return _Measured(loop, needs)


def consistency_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Compare one pass of the three views with three, and with three bare training passes."""
    x, y = batch_of(options, 3)
    clean, noisy, adversarial = x.chunk(3)
    batch = Batch(clean, y[: options.batch], torch.arange(options.batch))
    views = ConsistencyViews(adversarial, noisy, Linf(8 / 255))
    for name in options.models:
        model = model_of(name, options)
        weights = list(model.parameters())

        def loss(
            forward: str, model: nn.Module = model, weights: list[Any] = weights
        ) -> Callable[[], object]:
            def run() -> object:
                made = consistency_loss(model, batch, views, beta=12.0, forward=forward)
                return torch.autograd.grad(made.total, weights)

            return run

        def bare(model: nn.Module = model, weights: list[Any] = weights) -> None:
            for view in (clean, noisy, adversarial):
                torch.autograd.grad(F.cross_entropy(model(view), batch.y), weights)

        tasks = {"ours": loss("concatenated"), "reference": loss("separate"), "limit": bare}
        yield Row(
            part="consistency", model=name, case="three views in one pass", unit="s",
            reference_name="three passes", limit_name="three bare training passes",
            **alternate(tasks, 2 * options.rounds),
        )  # fmt: skip
