"""Which epoch's weights are kept: those that withstand most on images held out of training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.attacks import Attack, PassMeter, attacking
from multirobust.config import TrainingConfig
from multirobust.data import Data
from multirobust.errors import InputError
from multirobust.ranks import PartGenerator, agreed, parts, rank, ranks, summed
from multirobust.training.checkpoint import check_counts, check_numbers
from multirobust.training.runtime import Runtime
from multirobust.training.weights import snapshot

__all__ = ["Selected", "Selection"]


@dataclass(frozen=True)
class Selected:
    """What a selection found, and what it cost besides the training.

    Args:
        epoch: Whose weights were kept, from 1 on.
        history: For each measured epoch its number and the accuracies on the held-out images:
            "clean", one for each attack, and "union".
        images: How many images were held out.
        seconds: Time that it took, summed over resumptions.
        forwards: Images passed forward, all in all.
        backwards: Images passed backward, all in all.
    """

    epoch: int
    history: tuple[dict[str, float], ...]
    images: int
    seconds: float
    forwards: int
    backwards: int


@final
class Selection:
    """Measures epochs on the held-out images, and keeps the best weights so far.

    The model is attacked as it is used: in evaluation mode, without autocast. Each attack starts at
    the same random numbers in every epoch, and sees the images that the model gets right. The
    epoch of the greatest union is kept; of equal ones that of greater clean accuracy, then the
    earlier.

    Args:
        model: The classifier; it is judged with the weights that it has at that time.
        data: Its held-out images are used, and none other.
        attacks: By name; an image counts for the union if it withstands all of them.
        config: Says how often to measure, and how many images a pass has.
        runtime: Gives device and precision.

    Raises:
        InputError: If no images are held out, or there are no attacks.

    References: Rice, Wong and Kolter, Overfitting in adversarially robust deep learning, ICML 2020.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        attacks: Mapping[str, Attack],
        config: TrainingConfig,
        runtime: Runtime,
    ):
        if data.validation is None:
            raise InputError(
                "training.select: 'union' needs images that are held out of training, got none; "
                "set data.validation to a number of images such as 1000, or training.select to "
                "'last'."
            )
        if not attacks:
            raise InputError(
                "held_out_attacks: training.select 'union' needs at least one attack, got none; "
                "pass attacks_from(recipe.attack, threats_from(recipe.threats))."
            )
        self.model, self.attacks, self.config, self.runtime = model, attacks, config, runtime
        self.split = data.validation.to(runtime.device)
        self.meter = PassMeter(model)
        self.history: list[dict[str, float]] = []
        self.epoch, self.best, self.seconds = 0, {}, 0.0

    def due(self, epoch: int, *, last: bool) -> bool:
        """Whether an epoch, from 1 on, is measured; the last always is."""
        return epoch % self.config.select_epochs == 0 or last

    def judge(self, epoch: int) -> dict[str, float]:
        """Measure the model after an epoch, and keep its weights if no earlier ones are better.

        Returns:
            Accuracies on the held-out images: "clean", one for each attack, and "union".
        """
        begun = time.monotonic()
        with self.meter, attacking(self.model, "running"), torch.no_grad():
            measured = agreed(self._accuracies())
        greatest = max((_rank(line) for line in self.history), default=None)
        if greatest is None or _rank(measured) > greatest:
            self.epoch, self.best = epoch, snapshot(self.model)
        self.history.append({"epoch": epoch, **measured})
        self.seconds += time.monotonic() - begun
        return measured

    def _accuracies(self) -> dict[str, float]:
        x, y = self.split.floats().to(self.runtime.dtype), self.split.labels
        clean = self._right(x, y)
        right, union, count = {"clean": clean}, clean, clean.nonzero().flatten()
        for number, (name, attack) in enumerate(self.attacks.items()):
            robust = clean.clone()
            if len(count):
                generator = torch.Generator(self.runtime.device).manual_seed(number)
                size = self.config.batch_size
                if ranks() * self.config.accumulate == 1:
                    part = x[count], y[count]
                    x_adv = attack.run(self.model, *part, batch_size=size, generator=generator)
                    robust[count] = self._right(x_adv, part[1])
                else:
                    batches = zip(x[count].split(size), y[count].split(size), strict=True)
                    found = [self._withstood(attack, *batch, generator) for batch in batches]
                    robust[count] = torch.cat(found)
            right[name], union = robust, union & robust
        right["union"] = union
        return {name: rows.double().mean().item() for name, rows in right.items()}

    def _withstood(
        self, attack: Attack, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Which images of a batch the model still gets right; ranks and rounds divide them."""
        rounds = parts(len(x), rank=rank(), ranks=ranks(), rounds=self.config.accumulate)
        passes = self.meter.forwards, self.meter.backwards
        right, source = torch.zeros(len(x), device=x.device), generator
        for part in rounds:
            own = slice(part.start, part.stop)
            source = PartGenerator.of(part, generator)
            x_adv = attack.run(self.model, x[own], y[own], batch_size=part.rows, generator=source)
            right[own] = self._right(x_adv, y[own]).float()
        generator.set_state(source.get_state())
        if rounds[0].alone:
            return right.bool()
        counted = self.meter.forwards - passes[0], self.meter.backwards - passes[1]
        total, right = summed((torch.tensor(counted, device=x.device), right))
        forwards, backwards = total.tolist()
        self.meter.forwards, self.meter.backwards = passes[0] + forwards, passes[1] + backwards
        return right.bool()

    def _right(self, x: Tensor, y: Tensor) -> Tensor:
        """Which images the model gets right; none whose logits are NaN or infinite."""
        size = -(-self.config.batch_size // (ranks() * self.config.accumulate))
        logits = torch.cat([self.model(part) for part in x.split(size)])
        return (logits.argmax(1) == y) & logits.isfinite().all(1)

    def result(self) -> Selected:
        """Return what was found so far."""
        return Selected(
            epoch=self.epoch,
            history=tuple(self.history),
            images=len(self.split),
            seconds=self.seconds,
            forwards=self.meter.forwards,
            backwards=self.meter.backwards,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {
            "epoch": self.epoch,
            "best": self.best,
            "history": list(self.history),
            "seconds": self.seconds,
            "forwards": self.meter.forwards,
            "backwards": self.meter.backwards,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the best weights go to the device.

        Raises:
            ValueError: If the best weights are of another model, or a count or accuracy is none.
        """
        check_counts(state, "epoch", "forwards", "backwards")
        check_numbers(state, "seconds")
        for line in state["history"]:
            check_numbers({**line}, *{"epoch", "clean", "union", *line})
        best, ours = state["best"], self.model.state_dict()
        shapes = [[getattr(v, "shape", None) for _, v in sorted(d.items())] for d in (best, ours)]
        if best and (best.keys() != ours.keys() or shapes[0] != shapes[1]):
            raise ValueError("the best weights in it are of another model")
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history = list(state["history"])
        self.meter.forwards, self.meter.backwards = state["forwards"], state["backwards"]
        self.best = {
            name: value.to(self.runtime.device) if isinstance(value, Tensor) else value
            for name, value in state["best"].items()
        }


def _rank(measured: Mapping[str, float]) -> tuple[float, float]:
    return measured["union"], measured["clean"]
