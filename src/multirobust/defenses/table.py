"""The table of defenses: every name, and what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from multirobust.attacks import (
    MSD,
    PGD,
    Attack,
    KLDivergence,
    Restarts,
    UniformSampler,
    WorstCase,
    attacks_from,
    threats_from,
)
from multirobust.config import DefenseConfig, Recipe
from multirobust.defenses.adversarial import (
    TRADES,
    AdversarialTraining,
    AverageTraining,
    Standard,
)
from multirobust.defenses.base import Defense
from multirobust.defenses.consistency import ConsistencyTraining
from multirobust.defenses.learned_noise import ANT, MNGAC
from multirobust.errors import lookup_error
from multirobust.models import NoiseGenerator
from multirobust.threats import L2, Threat

__all__ = ["DEFENSES", "Ingredients", "build"]

Norm = Literal["linf", "l2", "l1"]


@dataclass(frozen=True)
class Ingredients:
    """What the rows of the table are made from.

    Args:
        threats: The balls, by norm.
        pgd: The training attacks, by norm.
        restarts: How often each training attack starts.
        config: The hyper-parameters.
        channels: Of the images.
        seed: Of the sampler and the generator's first weights.
    """

    threats: dict[str, Threat]
    pgd: dict[str, PGD]
    restarts: int
    config: DefenseConfig
    channels: int
    seed: int

    def attack(self, norm: Norm) -> Attack:
        """The training attack of one norm."""
        return self._restarted(self.pgd[norm])

    def attacks(self) -> tuple[Attack, ...]:
        """The training attacks of all norms: the perturbation set S."""
        return tuple(self._restarted(attack) for attack in self.pgd.values())

    def divergence_attack(self) -> Attack:
        """The linf attack, on the divergence that TRADES regularizes."""
        return self._restarted(replace(self.pgd["linf"], objective=KLDivergence()))

    def sampler(self) -> UniformSampler:
        """A fresh uniform sampler over the set."""
        return UniformSampler(self.attacks(), seed=self.seed)

    def noise(self) -> NoiseGenerator:
        """A fresh noise generator."""
        return NoiseGenerator(self.channels, conditioning=self.config.conditioning, seed=self.seed)

    def _restarted(self, attack: PGD) -> Attack:
        return Restarts(attack, self.restarts, attack.objective) if self.restarts > 1 else attack


def _msd(parts: Ingredients) -> Defense:
    config = parts.config
    sizes = {"linf": config.msd_linf, "l2": config.msd_l2, "l1": config.msd_l1}
    attack = MSD(
        balls=tuple(parts.threats.values()),
        step_sizes=tuple(sizes[norm] for norm in parts.threats),
        steps=config.msd_steps,
    )
    return AdversarialTraining(attack)


def _ant(parts: Ingredients) -> Defense:
    threat = L2(parts.config.ant_radius or parts.threats["l2"].radius)
    return ANT(parts.noise(), threat, clean_share=parts.config.ant_clean_share)


def _sat_ac(parts: Ingredients) -> Defense:
    config = parts.config
    return ConsistencyTraining(
        parts.sampler(), beta=config.beta, forward=config.consistency_forward
    )


def _mng_ac(parts: Ingredients) -> Defense:
    config = parts.config
    sgd = config.generator_optimizer == "sgd"
    return MNGAC(
        parts.sampler(),
        parts.noise(),
        beta=config.beta,
        forward=config.consistency_forward,
        momentum=0.9 if sgd else 0.0,
        weight_decay=5e-4 if sgd else 0.0,
        meta_mode=config.meta_mode,
    )


DEFENSES: dict[str, Callable[[Ingredients], Defense]] = {
    "standard": lambda parts: Standard(),
    "adv_linf": lambda parts: AdversarialTraining(parts.attack("linf")),
    "adv_l2": lambda parts: AdversarialTraining(parts.attack("l2")),
    "adv_l1": lambda parts: AdversarialTraining(parts.attack("l1")),
    "trades": lambda parts: TRADES(parts.divergence_attack(), beta=parts.config.trades_beta),
    "adv_avg": lambda parts: AverageTraining(parts.attacks()),
    "adv_max": lambda parts: AdversarialTraining(WorstCase(parts.attacks())),
    "msd": _msd,
    "ant": _ant,
    "sat": lambda parts: AdversarialTraining(parts.sampler()),
    "sat_ac": _sat_ac,
    "mng_ac": _mng_ac,
}


def build(name: str, recipe: Recipe, *, channels: int, seed: int = 0) -> Defense:
    """Return a fresh defense by its name.

    Args:
        name: A name of `multirobust list defenses`.
        recipe: Gives threats, training attacks and hyper-parameters.
        channels: Of the images, for a noise generator.
        seed: Of the sampler and the generator's first weights.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in DEFENSES:
        raise lookup_error("defense", name, DEFENSES)
    threats = threats_from(recipe.threats)
    pgd = attacks_from(recipe.attack, threats)
    parts = Ingredients(threats, pgd, recipe.attack.restarts, recipe.defense, channels, seed)
    return DEFENSES[name](parts)
