"""One attack on one block of images, whatever the model does: raises, runs out of memory, NaN."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from multirobust.attacks import PassMeter, StoredImages
from multirobust.errors import InputError, MultirobustError
from multirobust.evaluation.state import State
from multirobust.evaluation.suites import NamedAttack
from multirobust.threats import Threat

__all__ = ["NAN", "BlockResult", "Runner", "out_of_memory"]

TOLERANCE = 1e-5
"""Relative excess over the radius, or absolute over the pixel box, that makes an image invalid."""

NAN = "NaN among the logits"
"""What is noted of an image for which the model returns NaN."""

HOPELESS = 8
"""After so many single images that all failed, with none that did not, the rest is not tried."""


@final
@dataclass
class BlockResult:
    """What an attack did to some images of a block.

    Args:
        states: `State` of each image, int64, shape (m,), on the CPU.
        distances: In the norm of the threat, float32, shape (m,), on the CPU.
        images: The adversarial images (m, c, h, w), float32, on the CPU, if they are wanted.
        errors: What went wrong, one line each.
        seconds: Wall time.
        forwards: Images passed forward.
        backwards: Images passed backward.
    """

    states: Tensor
    distances: Tensor
    images: Tensor | None = None
    errors: frozenset[str] = frozenset()
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0


@final
class Runner:
    """A model under attack.

    Args:
        model: Maps images to logits.
        device: Where it runs.
        batch_size: Images a pass, at least 1. Halved for good when memory runs out.
        seed: Of the attacks' random numbers.
        keep_images: Whether results hold the adversarial images.
        report: Receives a line when the batch is halved.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        batch_size: int,
        seed: int,
        keep_images: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ):
        if isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(
                f"batch_size must be a whole number of images, 1 or more, got {batch_size!r}."
            )
        self.model, self.device, self.batch_size = model, device, batch_size
        self.seed, self.keep_images, self.report = seed, keep_images, report

    def predict(self, x: Tensor) -> tuple[Tensor, frozenset[str]]:
        """Return the class of each image, -1 where a logit is NaN or the model raises, and why."""
        errors: set[str] = set()

        def predicted(part: Tensor) -> Tensor:
            answers = self._predicted(x[part]).cpu()
            if bool((answers == -1).any()):
                errors.add(NAN)
            return answers

        def failed(part: Tensor) -> Tensor:
            return torch.full((len(part),), -1)

        answer = self._isolated(predicted, failed, torch.arange(len(x)), errors)
        return answer, frozenset(errors)

    def attack(self, named: NamedAttack, x: Tensor, y: Tensor, positions: Tensor) -> BlockResult:
        """Attack images that the model gets right.

        Args:
            named: The attack.
            x: Images (m, c, h, w), on the device.
            y: Labels (m,), on the device.
            positions: Of the images in the split, (m,), on the CPU; the first decides the seed.
        """
        errors: set[str] = set()
        started, meter = time.monotonic(), PassMeter(self.model)

        def attacked(part: Tensor) -> Tensor:
            return self._attacked(named, x[part], y[part], positions[part], errors)

        def failed(part: Tensor) -> Tensor:
            table = torch.zeros((len(part), 2 + self.keep_images * x[0].numel()))
            table[:, 0] = State.ERROR
            return table

        with meter:
            table = self._isolated(attacked, failed, torch.arange(len(x)), errors)
        return BlockResult(
            states=table[:, 0].long(),
            distances=table[:, 1].float(),
            images=table[:, 2:].reshape(x.shape) if self.keep_images else None,
            errors=frozenset(errors),
            seconds=time.monotonic() - started,
            forwards=meter.forwards,
            backwards=meter.backwards,
        )

    def _isolated(
        self,
        ask: Callable[[Tensor], Tensor],
        failed: Callable[[Tensor], Tensor],
        part: Tensor,
        errors: set[str],
    ) -> Tensor:
        """Ask about all images; where that raises, about each half, down to the image at fault.

        Not tried again once `HOPELESS` single images have failed and none has not.
        """
        answers: dict[int, Tensor] = {}
        pending, singles, succeeded = [part], 0, False
        while pending:
            piece = pending.pop()
            if singles >= HOPELESS and not succeeded:
                answers[int(piece[0])] = failed(piece)
                continue
            try:
                answers[int(piece[0])] = self._within_memory(ask, piece)
                succeeded = True
            except MultirobustError:
                raise
            except Exception as error:
                if len(piece) > 1:
                    half = len(piece) // 2
                    pending += [piece[half:], piece[:half]]
                    continue
                errors.add(f"{type(error).__name__}: {error}"[:200])
                answers[int(piece[0])] = failed(piece)
                singles += 1
        return torch.cat([answers[first] for first in sorted(answers)])

    def _within_memory(self, ask: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
        """Ask; where memory runs out, with half of the batch size, again and again."""
        while True:
            try:
                return ask(part)
            except Exception as error:
                if not out_of_memory(error) or self.batch_size == 1:
                    raise
            self.batch_size = max(1, self.batch_size // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.report(f"out of memory: going on with batches of {self.batch_size} images")

    @torch.no_grad()
    def _predicted(self, x: Tensor) -> Tensor:
        answers = []
        for part in x.split(self.batch_size):
            logits = self.model(part)
            answers.append(torch.where(logits.isnan().any(dim=1), -1, logits.argmax(dim=1)))
        return torch.cat(answers)

    def _attacked(
        self, named: NamedAttack, x: Tensor, y: Tensor, positions: Tensor, errors: set[str]
    ) -> Tensor:
        """Return state, distance and, if wanted, pixels of each image as rows of a table."""
        x_adv = self._images(named, x, y, positions)
        if x_adv.shape != x.shape:
            raise ValueError(f"images of shape {tuple(x_adv.shape)}, not {tuple(x.shape)}")
        predictions = self._predicted(x_adv)
        box, ball, distance = _bounds(named, x_adv, x)
        finite = x_adv.flatten(1).isfinite().all(1)
        found = {
            "no image: the attack found none to start from, or NaN pixels": ~finite,
            "images outside the pixel box": finite & ~box,
            "images outside the ball": finite & ~ball,
            NAN: finite & (predictions == -1),
        }
        errors |= {line for line, rows in found.items() if bool(rows.any())}
        failed = torch.stack(list(found.values())).any(0)
        state = torch.where(predictions == y, State.SURVIVED, State.BROKEN)
        state = torch.where(failed, State.ERROR, state)
        distance = torch.where(failed, 0, distance)
        columns = [state[:, None].float(), distance[:, None].float()]
        if self.keep_images:
            columns.append(x_adv.float().flatten(1))
        return torch.cat(columns, 1).cpu()

    def _images(self, named: NamedAttack, x: Tensor, y: Tensor, positions: Tensor) -> Tensor:
        if isinstance(named.attack, StoredImages):
            return named.attack.at(positions)(self.model, x, y)
        digest = hashlib.sha256(f"{self.seed} {named.name} {int(positions[0])}".encode()).digest()
        generator = torch.Generator(x.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        attack, settings = named.attack.seeded(self.seed), {"batch_size": self.batch_size}
        return attack.run(self.model, x, y, **settings, generator=generator)


def _bounds(named: NamedAttack, x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which images lie in the box, which in the ball, and their distances, all (m,)."""
    pixels, threat = x_adv.flatten(1), named.threat
    box = (pixels.amin(1) >= -TOLERANCE) & (pixels.amax(1) <= 1 + TOLERANCE)
    if not isinstance(threat, Threat):
        return box, torch.ones_like(box), torch.zeros_like(pixels[:, 0])
    distance = threat.distance(x_adv, x)
    return box, distance <= threat.radius * (1 + TOLERANCE), distance


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, of the device or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
