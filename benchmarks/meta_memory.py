"""The most memory that the meta step of `mng_ac` holds, in each mode, beside a training step.

What PyTorch's allocator gave and took back is read from its own record, event by event
(`torch.profiler` with `profile_memory`): the greatest sum is the peak. So it does not depend on
what the operating system gives or keeps, nor on what else runs, and is the same in each run. What
libraries allocate past that allocator is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from comparison import Row
from step_time import Case, loop_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from multirobust.attacks import attacking
from multirobust.errors import Interrupted
from multirobust.training import Silent
from multirobust.training.loop import Loop

__all__ = ["MB", "memory_rows", "peak_bytes", "saved_bytes", "step_of"]

MB = 2**20
MODES: dict[str, tuple[list[str], float]] = {
    "mixed_vjp": ([], 2.0),
    "recomputed": (["defense.meta_mode=recomputed"], 2.0),
    "unrolled": (["defense.meta_mode=unrolled"], 2.0),
    "forward_over_reverse": (["defense.meta_mode=forward_over_reverse"], 2.0),
    "recomputed, half of the batch": (
        ["defense.meta_mode=recomputed", "defense.meta_share=0.5"],
        1.4,
    ),
    "a quarter of the batch": (["defense.meta_share=0.25"], 1.4),
}
"""Changes of the recipe, and the goal."""


def peak_bytes(task: Callable[[], object]) -> int:
    """Return the most that a task had allocated at one time, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        task()
    events = profiler.profiler.kineto_results.events()
    records = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(records, key=lambda record: record[0]):
        held += size
        peak = max(peak, held)
    return peak


def saved_bytes(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return what a training pass keeps for its way back, beyond the weights and the images."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = F.cross_entropy(model(x), y)  # alive until all is counted
    for tensor in (*model.parameters(), *model.buffers(), x, y):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del loss
    return sum(kept.values())


def memory_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Compare the peak of the meta step in each mode, and of whole steps, with a training step's.

    Both have the weights and the momentum; the peak of a step counts from there.
    """
    for name in options.models:
        plain = _loop(name, "standard", [], options)
        batch = plain.runtime.batch(next(iter(plain.loader.epoch(0))))
        weights = sum(p.nbytes for p in plain.model.parameters())
        limit = saved_bytes(plain.model, batch.x, batch.y)
        step_of(plain)()
        reference = peak_bytes(step_of(plain))

        def row(
            case: str, peak: int, goal: float | None, name: str = name,
            resident: int = 2 * weights, limit: int = limit, reference: int = reference,
        ) -> Row:  # fmt: skip
            return Row(
                part="memory", model=name, case=case, unit="MB",
                ours=((resident + peak) / MB,),
                reference_name="a training step on clean images",
                reference=((resident + reference) / MB,),
                limit_name="weights, momentum, and what a training pass keeps",
                limit=((resident + limit) / MB,),
                goal=goal, goal_of="reference",
            )  # fmt: skip

        for case, (changes, goal) in MODES.items():
            peak = peak_bytes(_meta_step(_loop(name, "mng_ac", changes, options)))
            yield row(f"meta step, {case}", peak, goal)
        for defense in ("sat_ac", "mng_ac"):
            loop = _loop(name, defense, [], options)
            step_of(loop)()
            yield row(f"whole step of {defense}", peak_bytes(step_of(loop)), None)


def _loop(model: str, defense: str, changes: list[str], options: argparse.Namespace) -> Loop:
    short = [f"attack.{norm}.steps=1" for norm in ("linf", "l2", "l1")]
    settings = argparse.Namespace(
        recipe=options.recipe, set=[*options.set, *short, *changes], repeats=1,
        batch=options.memory_batch, size=options.size, device="cpu",
    )  # fmt: skip
    return loop_of(Case(model, "float32", defense), settings)


def step_of(loop: Loop) -> Callable[[], None]:
    """Return one step of the training loop itself."""

    def step() -> None:
        with contextlib.suppress(Interrupted):
            loop.run(Silent(), "memory", lambda: True)

    return step


def _meta_step(loop: Loop) -> Callable[[], Any]:
    """Return the look-ahead with the generator's step and the new noise, on a crafted batch."""
    model, defense = loop.model, loop.defense
    batch = loop.runtime.batch(next(iter(loop.loader.epoch(0))))
    model.train()
    with attacking(model, "batch"):
        views = defense.craft(model, batch)
    adapt = functools.partial(defense.adapt, model, batch, views, lr=0.1)
    adapt()  # loads what the first one loads
    defense.steps = 0
    return adapt
