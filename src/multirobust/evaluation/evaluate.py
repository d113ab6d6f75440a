"""Attack a classifier with a suite and record what happened to every image."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multirobust.attacks import PassMeter
from multirobust.data import Loader, Split
from multirobust.errors import InputError, MultirobustError
from multirobust.evaluation.outcomes import AttackColumn, Outcomes, State
from multirobust.evaluation.suites import NamedAttack, Suite
from multirobust.provenance import provenance

__all__ = ["check_model", "evaluate_suite"]

TOLERANCE = 1e-5
"""Relative excess over the radius, or absolute over the pixel box, that makes an image invalid."""


def evaluate_suite(
    model: nn.Module,
    split: Split,
    suite: Suite,
    *,
    batch_size: int = 256,
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    manifest: dict[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Outcomes:
    """Attack a classifier with every attack of a suite.

    Every attack sees every image that the model gets right. Where a model or an attack raises, a
    prediction is NaN, or an adversarial image lies outside its ball, the images are recorded as
    `State.ERROR`, neither robust nor broken, and the manifest says why under "errors".

    Args:
        model: Maps images in [0, 1] to logits; in evaluation mode.
        split: Images and labels.
        suite: The attacks.
        batch_size: Images a pass; bounds the memory.
        limit: Use only the first images.
        seed: Of the attacks' random starts.
        device: Where to run; None takes that of the model's parameters.
        manifest: What the outcomes should say besides what is known here.
        report: Receives one line when an attack is done.

    Returns:
        The outcomes, in the order of the split.

    Raises:
        InputError: If the limit is below 1, or the model is not a classifier of these images (see
            `check_model`).
    """
    check_model(model, split)
    split = split.first(min(limit, len(split))) if limit is not None else split
    device = torch.device(device) if device is not None else _device_of(model)
    loader = Loader(split, batch_size=batch_size, seed=seed, device=device, shuffle=False)
    clean = _Clean(model, loader)
    columns, errors = [], {"clean": sorted(clean.errors)} if clean.errors else {}
    for named in suite.attacks:
        run = _Run(model, loader, named, seed)
        columns.append(run.column(clean))
        if run.errors:
            errors[named.name] = sorted(run.errors)
        report(_told(columns[-1], run.errors))
    facts = {
        "suite": suite.name,
        "seed": seed,
        "images": len(split),
        "batch_size": batch_size,
        "errors": errors,
        **provenance(device),
    }
    return Outcomes(
        index=np.arange(len(split)),
        labels=split.labels.cpu().numpy(),
        predictions=clean.predictions.cpu().numpy(),
        columns=tuple(columns),
        manifest=facts | (manifest or {}),
    )


def check_model(model: nn.Module, split: Split) -> None:
    """Raise an InputError unless the model looks like a classifier of these images.

    It must be in evaluation mode and return finite logits, one for each class, for the first
    images.

    Args:
        model: Maps images in [0, 1] to logits.
        split: The images it is to classify.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    training = [name or "the model" for name, part in model.named_modules() if part.training]
    if training:
        raise InputError(
            f"model must be in evaluation mode, but {training[0]} is in training mode; call "
            "model.eval() first, so that BatchNorm and dropout behave as in use."
        )
    logits = _logits_of_a_few(model, split)
    highest = int(split.labels.max())
    classes = max(highest + 1, 2)
    if logits.shape[1] < classes:
        raise InputError(
            f"model must return one logit for each class, got {logits.shape[1]} logits where the "
            f"labels go up to {highest}; use a model with at least {classes} classes."
        )
    if not logits.isfinite().any():
        raise InputError(
            "model must return finite logits, got none for the first images; check its weights."
        )
    sums = logits.float().sum(dim=1)
    if logits.min() >= 0 and logits.max() <= 1 and (sums - 1).abs().max() < 1e-3:
        raise InputError(
            "model must return logits, got rows of probabilities that sum to one, which hide "
            "gradients from attacks; drop the final softmax."
        )


@torch.no_grad()
def _logits_of_a_few(model: nn.Module, split: Split) -> Tensor:
    x = split.first(min(8, len(split))).floats().to(_device_of(model))
    try:
        logits = model(x)
    except Exception as error:
        raise InputError(
            f"model cannot take images of shape {tuple(x.shape)} in {x.dtype}, it raised "
            f"{type(error).__name__}: {error} Build it with the channels, size and dtype of the "
            "images."
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"model must return logits of shape (b, classes), got {shape} for {tuple(x.shape)}."
        )
    return logits


def _told(column: AttackColumn, errors: set[str]) -> str:
    """One line on what an attack did."""
    standing, failed = (int((column.states == s).sum()) for s in (State.SURVIVED, State.ERROR))
    line = f"{column.name}: {standing} of {len(column.states)} survive ({column.seconds:.1f} s)"
    why = f", such as {min(errors)}" if errors else ""
    return f"{line}; {failed} ended in errors{why}" if failed else line


class _Clean:
    """The model's predictions on the clean images, -1 where a logit is NaN or the model raised."""

    def __init__(self, model: nn.Module, loader: Loader):
        self.errors: set[str] = set()
        parts = []
        for batch in loader.epoch(0):
            try:
                with torch.no_grad():
                    parts.append(_predict(model, batch.x))
            except MultirobustError:
                raise
            except Exception as error:
                self.errors.add(_quoted(error))
                parts.append(torch.full_like(batch.y, -1))
        self.predictions = torch.cat(parts)
        if not self.errors and bool((self.predictions == -1).any()):
            self.errors.add("NaN among the logits")


def _predict(model: nn.Module, x: Tensor) -> Tensor:
    """Return the predicted class of each image, -1 where a logit is NaN."""
    logits = model(x)
    return torch.where(logits.isnan().any(dim=1), -1, logits.argmax(dim=1))


class _Run:
    """One attack on all images."""

    def __init__(self, model: nn.Module, loader: Loader, named: NamedAttack, seed: int):
        self.model, self.loader, self.named, self.seed = model, loader, named, seed
        self.meter = PassMeter(model)
        self.errors: set[str] = set()

    def column(self, clean: _Clean) -> AttackColumn:
        """Attack what the model gets right, and record every image."""
        started = time.monotonic()
        states, distances = [], []
        with self.meter:
            for batch in self.loader.epoch(0):
                predictions = clean.predictions[batch.index]
                state = torch.full_like(batch.y, State.BROKEN)
                state[predictions == -1] = State.ERROR
                distance = torch.zeros(len(batch), device=batch.x.device)
                right = (predictions == batch.y).nonzero().squeeze(1)
                if len(right):
                    first = int(batch.index[0])
                    found = self._attack(batch.x[right], batch.y[right], first)
                    state[right], distance[right] = found
                states.append(state)
                distances.append(distance)
        images = len(self.loader.split)
        return AttackColumn(
            name=self.named.name,
            threat=self.named.threat.norm,
            radius=self.named.threat.radius,
            states=torch.cat(states).to(torch.uint8).cpu().numpy(),
            distances=torch.cat(distances).float().cpu().numpy(),
            seconds=time.monotonic() - started,
            forwards=self.meter.forwards / images,
            backwards=self.meter.backwards / images,
            settings=repr(self.named.attack),
        )

    def _attack(self, x: Tensor, y: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Return state and distance of each image."""
        failed = torch.full_like(y, State.ERROR), torch.zeros(len(y), device=x.device)
        generator = torch.Generator(x.device).manual_seed(_seed(self.seed, self.named.name, first))
        try:
            x_adv = self.named.attack(self.model, x, y, generator=generator)
            with torch.no_grad():
                if x_adv.shape != x.shape:
                    raise ValueError(f"images of shape {tuple(x_adv.shape)}, not {tuple(x.shape)}")
                predictions = _predict(self.model, x_adv)
                distance = self.named.threat.distance(x_adv, x)
                outside = self._outside(x_adv, distance)
        except MultirobustError:
            raise
        except Exception as error:
            self.errors.add(_quoted(error))
            return failed
        if bool(outside.any()):
            self.errors.add("images outside the ball or the pixel box")
        if bool((predictions == -1).any()):
            self.errors.add("NaN among the logits")
        state = torch.where(predictions == y, State.SURVIVED, State.BROKEN)
        state = torch.where((predictions == -1) | outside, State.ERROR, state)
        return state, torch.where(outside, 0, distance)

    def _outside(self, x_adv: Tensor, distance: Tensor) -> Tensor:
        pixels = x_adv.flatten(1)
        box = (pixels.amin(1) >= -TOLERANCE) & (pixels.amax(1) <= 1 + TOLERANCE)
        ball = distance <= self.named.threat.radius * (1 + TOLERANCE)
        return ~(box & ball & pixels.isfinite().all(1))


def _quoted(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _device_of(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _seed(seed: int, name: str, first: int) -> int:
    digest = hashlib.sha256(f"{seed} {name} {first}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
