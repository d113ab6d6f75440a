"""Minimum-norm attacks of the paper's evaluation that foolbox runs, on whole batches."""

from __future__ import annotations

import abc
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, final

import torch

from multirobust.attacks.minimum_norm import MinimumNorm, Queries
from multirobust.errors import InputError

__all__ = ["CarliniWagner", "ElasticNet", "FoolboxAttack", "SaltAndPepper"]


@dataclass(frozen=True, kw_only=True)
class FoolboxAttack(MinimumNorm, abc.ABC):
    """A minimum-norm attack of foolbox; needs the extra `foolbox`.

    foolbox sees a model that asks only about images not yet broken and remembers the closest
    adversarial image, so that its own choice of the image to return does not count. What it draws
    from torch's global generator it draws from the generator given; the global one stays as it was.
    """

    @abc.abstractmethod
    def build(self, attacks: ModuleType) -> Any:
        """Return foolbox's attack, given its module of attacks."""

    def pursue(self, queries: Queries, generator: torch.Generator) -> None:
        """See `MinimumNorm.pursue`.

        Raises:
            InputError: If foolbox is not installed.
        """
        foolbox = _foolbox()
        device = queries.x.device
        model = foolbox.PyTorchModel(queries, bounds=(0, 1), device=device)
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        devices = [] if device.type == "cpu" else [device]
        kind = device.type if devices else "cuda"
        with torch.random.fork_rng(devices, device_type=kind), torch.enable_grad():
            torch.manual_seed(seed)
            criterion = foolbox.criteria.Misclassification(queries.y)
            self.build(foolbox.attacks).run(model, queries.x, criterion)

    def _check(self, rules: dict[str, tuple[bool, str]]) -> None:
        for name, (kept, rule) in rules.items():
            if not kept:
                raise InputError(
                    f"{type(self).__name__}: {name} must be {rule}, got {getattr(self, name)!r}."
                )


@final
@dataclass(frozen=True, kw_only=True)
class CarliniWagner(FoolboxAttack):
    """Carlini and Wagner's l2 attack: Adam on distance and margin, with a search for the weight.

    Costs at most rounds * steps forward-backward passes. The defaults are those of the paper's
    code; what it leaves open are foolbox's.

    Args:
        threat: L2.
        rounds: Weights of the margin that are tried, at least 1.
        steps: Of Adam for each weight, at least 1.
        step_size: Of Adam, in the space of the inverse hyperbolic tangent.
        weight: The first weight of the margin.
        abort_early: End a round when the loss, summed over the batch, falls no more, as foolbox
            does unless told otherwise. False costs more passes, may find closer images, and makes
            results independent of the other images of the batch.

    References: Carlini and Wagner, Towards evaluating the robustness of neural networks, IEEE S&P
    2017. Rauber et al., foolbox 3.3.4.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)

    rounds: int = 5
    steps: int = 200
    step_size: float = 1e-2
    weight: float = 1e-3
    abort_early: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(_rules_of_descent(self, "200"))

    def build(self, attacks: ModuleType) -> Any:
        """See `FoolboxAttack.build`."""
        return attacks.L2CarliniWagnerAttack(
            binary_search_steps=self.rounds,
            steps=self.steps,
            stepsize=self.step_size,
            initial_const=self.weight,
            abort_early=self.abort_early,
        )


@final
@dataclass(frozen=True, kw_only=True)
class ElasticNet(FoolboxAttack):
    """Elastic-net attack (EAD): accelerated descent on l2, margin and a shrunk l1 distance.

    Costs at most rounds * steps forward-backward passes and as many forward passes. The defaults
    are those of the paper's code; what it leaves open are foolbox's. Of all images met the one of
    least l1 distance counts (the l1 decision rule).

    Args:
        threat: L1.
        rounds: Weights of the margin that are tried, at least 1.
        steps: For each weight, at least 1.
        step_size: The first one; it falls with the square root of the steps left.
        weight: The first weight of the margin.
        shrinkage: How much of a pixel's change each step removes: the weight of the l1 distance.
        abort_early: See `CarliniWagner`.

    References: Chen et al., EAD: elastic-net attacks to deep neural networks via adversarial
    examples, AAAI 2018. Rauber et al., foolbox 3.3.4.
    """

    norms: ClassVar[tuple[str, ...]] = ("l1",)

    rounds: int = 5
    steps: int = 1000
    step_size: float = 1e-2
    weight: float = 1e-3
    shrinkage: float = 1e-2
    abort_early: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = 0 <= self.shrinkage < float("inf")
        rules = _rules_of_descent(self, "1000")
        self._check(rules | {"shrinkage": (kept, "0 or more and finite; the paper uses 0.01")})

    def build(self, attacks: ModuleType) -> Any:
        """See `FoolboxAttack.build`."""
        return attacks.EADAttack(
            binary_search_steps=self.rounds,
            steps=self.steps,
            initial_stepsize=self.step_size,
            initial_const=self.weight,
            regularization=self.shrinkage,
            decision_rule="L1",
            abort_early=self.abort_early,
        )


@final
@dataclass(frozen=True, kw_only=True)
class SaltAndPepper(FoolboxAttack):
    """Salt-and-pepper noise: black and white pixels, more and more until the model errs.

    Costs one forward pass a step. The defaults are those of foolbox, as the paper's code uses them.

    Args:
        threat: L1, or L2.
        steps: Draws of noise, at least 1.
        across_channels: Whether all channels of a pixel turn black or white together.

    References: Rauber, Brendel and Bethge, Foolbox: a Python toolbox to benchmark the robustness of
    machine learning models, 2017. Settings: foolbox 3.3.4.
    """

    norms: ClassVar[tuple[str, ...]] = ("l1", "l2")

    steps: int = 1000
    across_channels: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check({"steps": (self.steps >= 1, "at least 1; the paper uses 1000")})

    def build(self, attacks: ModuleType) -> Any:
        """See `FoolboxAttack.build`."""
        return attacks.SaltAndPepperNoiseAttack(
            steps=self.steps, across_channels=self.across_channels
        )


def _rules_of_descent(attack: Any, steps: str) -> dict[str, tuple[bool, str]]:
    infinite = float("inf")
    return {
        "rounds": (attack.rounds >= 1, "at least 1; the paper uses 5"),
        "steps": (attack.steps >= 1, f"at least 1; the paper uses {steps}"),
        "step_size": (0 < attack.step_size < infinite, "positive and finite; the paper uses 0.01"),
        "weight": (0 < attack.weight < infinite, "positive and finite; the paper uses 0.001"),
    }


def _foolbox() -> Any:
    """Import foolbox, which imports a name that SciPy is about to remove."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import foolbox
    except ImportError as error:
        raise InputError(
            f"This attack runs in foolbox, which cannot be imported ({error}); install it with "
            "pip install 'multirobust[foolbox]'."
        ) from error
    return foolbox
