"""What an attack is, how it borrows a model, and the wrappers that combine attacks."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multirobust.attacks.objectives import CrossEntropy, Objective
from multirobust.checks import check_images, check_labels
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Threat, Transformation
from multirobust.types import Images, Labels

__all__ = [
    "Attack",
    "Restarts",
    "WorstCase",
    "attacking",
    "check_batch",
    "input_gradient",
    "run_directly",
]


@dataclass(frozen=True)
class Attack(abc.ABC):
    """A frozen value that maps `(model, x, y)` to images within its threats."""

    @property
    @abc.abstractmethod
    def threats(self) -> tuple[Threat | Transformation, ...]:
        """The threats that its images may use: each image lies in at least one of them."""

    @abc.abstractmethod
    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """Return adversarial images of the shape of x, detached; x and the model stay as they are.

        Args:
            model: Maps images (b, c, h, w) in [0, 1] to logits (b, k).
            x: Clean images (b, c, h, w) in [0, 1], float.
            y: True labels (b,), int64.
            generator: On the device of x; without one, a fresh one with seed 0.
        """

    def seeded(self, seed: int) -> Attack:
        """Return the attack with a seed of its own for each image, where it has one; else itself.

        An evaluation calls it, so that the random search of an image is the same in every suite.
        """
        return self

    def run(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Images:
        """Attack any number of images with at most `batch_size` of them in a pass.

        The same arguments give the same images. An attack that can do better than one batch after
        the other overrides it.

        Args:
            model: See `__call__`.
            x: Clean images (n, c, h, w).
            y: True labels (n,).
            batch_size: Images a pass, at least 1; bounds the memory.
            generator: See `__call__`.
        """
        generator = _seeded(generator, x)
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([self(model, *part, generator=generator) for part in parts])


@contextlib.contextmanager
def attacking(
    model: nn.Module, batch_norm: Literal["batch", "running"] | str | None = None
) -> Iterator[None]:
    """Lend a model to an attack and give it back as it was.

    Inside, no parameter requires a gradient and no BatchNorm layer updates its running statistics.

    Args:
        model: The classifier.
        batch_norm: "batch" puts the model in training mode, so that BatchNorm uses the statistics
            of the attacked batch, as the paper's code does; "running" puts it in evaluation mode;
            None leaves the mode alone.

    Raises:
        InputError: If batch_norm is none of these.
    """
    if batch_norm not in ("batch", "running", None):
        raise lookup_error("batch_norm", batch_norm, ("batch", "running"))
    modules, parameters = list(model.modules()), list(model.parameters())
    modes = [module.training for module in modules]
    flags = [parameter.requires_grad for parameter in parameters]
    tracking = [
        (module, module.track_running_stats) for module in modules if isinstance(module, _BatchNorm)
    ]
    try:
        if batch_norm is not None:
            model.train(batch_norm == "batch")
        for module, _ in tracking:
            if module.training:
                module.track_running_stats = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for module, tracked in tracking:
            module.track_running_stats = tracked
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


def check_batch(x: Images, y: Labels) -> None:
    """Raise unless x and y are a batch that an attack can start from.

    Type, shape and dtype are always checked. Values, such as pixels in 0..255, are checked on a CPU
    only: on an accelerator that would wait for it in every training step. `evaluate` and `train`
    take uint8 splits, whose values are right by construction.

    Raises:
        InputError: Naming the argument, the rule, the value and the way out.
    """
    check_images(x, values=x.device.type == "cpu")
    check_labels(y, None, images=len(x), values=y.device.type == "cpu")


def input_gradient(
    model: nn.Module, x: Images, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the summed loss with respect to x, and the logits, both detached.

    One forward pass and the part of a backward pass that leads to the input: weight gradients are
    never formed, since the parameters do not require one (see `attacking`).

    Raises:
        InputError: If no gradient leads from the logits to x: such a model would look robust.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        total = loss(logits).sum()
        gradient = None
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    if gradient is None:
        raise InputError(
            "model: its logits must depend differentiably on x, and no gradient leads back to the "
            "images; remove what detaches, rounds or disables gradients inside the model."
        )
    return gradient, logits.detach()


@final
@dataclass(frozen=True)
class WorstCase(Attack):
    """Of several attacks, the result of greatest loss for each image (Eq. 3).

    Costs one forward pass for each attack besides what the attacks cost.

    Args:
        attacks: The attacks; each starts from the clean images.
        objective: The loss that decides.

    References: Tramèr and Boneh, Adversarial training and robustness for multiple perturbations,
    NeurIPS 2019.
    """

    attacks: tuple[Attack, ...]
    objective: Objective = CrossEntropy()

    def __post_init__(self) -> None:
        if not self.attacks:
            raise InputError("WorstCase: attacks must name at least one attack, got none.")

    @property
    def threats(self) -> tuple[Threat | Transformation, ...]:
        """The threats of all its attacks."""
        return tuple(threat for attack in self.attacks for threat in attack.threats)

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`."""
        generator = _seeded(generator, x)
        with attacking(model):
            loss = self.objective.bind(model, x, y)
            candidates = (attack(model, x, y, generator=generator) for attack in self.attacks)
            return strongest(model, candidates, loss)


@final
@dataclass(frozen=True)
class Restarts(Attack):
    """One attack several times from its random start; the result of greatest loss for each image.

    Args:
        attack: The attack; without a random start, repeating it changes nothing.
        times: How often, at least 1.
        objective: The loss that decides.
    """

    attack: Attack
    times: int
    objective: Objective = CrossEntropy()

    def __post_init__(self) -> None:
        if self.times < 1:
            raise InputError(f"Restarts: times must be at least 1, got {self.times}.")

    @property
    def threats(self) -> tuple[Threat | Transformation, ...]:
        """The threats of its attack."""
        return self.attack.threats

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`."""
        generator = _seeded(generator, x)
        with attacking(model):
            loss = self.objective.bind(model, x, y)
            candidates = (self.attack(model, x, y, generator=generator) for _ in range(self.times))
            return strongest(model, candidates, loss)


@torch.no_grad()
def strongest(
    model: nn.Module, candidates: Iterator[Images], loss: Callable[[Tensor], Tensor]
) -> Images:
    """Return, of several batches of candidates, the one of greatest loss for each image.

    A candidate whose loss is NaN loses to any number.
    """
    best = next(candidates)
    best_loss = loss(model(best)).nan_to_num(nan=-torch.inf)
    for candidate in candidates:
        candidate_loss = loss(model(candidate)).nan_to_num(nan=-torch.inf)
        better = candidate_loss > best_loss
        best = torch.where(better[:, None, None, None], candidate, best)
        best_loss = torch.where(better, candidate_loss, best_loss)
    return best


def _seeded(generator: torch.Generator | None, x: Images) -> torch.Generator:
    """The generator itself, or a fresh one with seed 0 that several draws can share."""
    return generator or torch.Generator(x.device).manual_seed(0)


def run_directly(
    key: Hashable,
    work: Callable[..., Any],
    tensors: tuple[Tensor, ...],
    generator: torch.Generator | None = None,
) -> Any:
    """Return work(*tensors, generator=generator); the key, which names the work, is not used."""
    return work(*tensors, generator=generator)
