"""What the rows of the table of defenses are made from, as a recipe describes it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from multirobust.attacks import (
    PGD,
    Attack,
    KLDivergence,
    LockstepAPGD,
    Projected,
    Restarts,
    SpatialRandom,
    UniformSampler,
)
from multirobust.attacks.choosing import MixedSampler, mixed_attacks, sampler_from
from multirobust.config import DefenseConfig, TrainingConfig
from multirobust.config.defense import Norm
from multirobust.defenses.noise_sources import steps_left
from multirobust.models import NoiseGenerator
from multirobust.threats import Threat

__all__ = ["Ingredients"]


@dataclass(frozen=True)
class Ingredients:
    """What the rows of the table are made from.

    Args:
        threats: The balls, by norm.
        pgd: The training attacks, by norm.
        restarts: How often each training attack starts.
        config: The hyper-parameters.
        training: The optimizer's settings, for what trains beside the classifier.
        channels: Of the images.
        seed: Of the sampler and the generator's first weights.
    """

    threats: dict[str, Threat]
    pgd: dict[str, PGD]
    restarts: int
    config: DefenseConfig
    training: TrainingConfig
    channels: int
    seed: int

    def attack(self, norm: Norm) -> Attack:
        """The training attack of one norm."""
        return self._restarted(self.pgd[norm])

    def attacks(self) -> tuple[Attack, ...]:
        """The training attacks of all norms: the perturbation set S."""
        return tuple(self._restarted(attack) for attack in self.pgd.values())

    def divergence_attack(self, *, step_size: float | None = None) -> Attack:
        """The linf attack, on the divergence that TRADES regularizes.

        Args:
            step_size: In place of that of the training attack.
        """
        attack = replace(self.pgd["linf"], objective=KLDivergence())
        return self._restarted(replace(attack, step_size=step_size) if step_size else attack)

    def rst_step_size(self) -> float:
        """The step of robust self-training: 0.007 for a radius of 8/255 unless the recipe says."""
        published = 0.007 * self.threats["linf"].radius / (8 / 255)
        return self.config.rst_step_size or published

    def extreme_attack(self, norm: Norm) -> Attack:
        """The attack of E-AT and RAMP in one norm."""
        if self.config.extreme_attack == "pgd":
            return self.attack(norm)
        return LockstepAPGD(threat=self.threats[norm], steps=self.config.apgd_steps)

    def spatial_attack(self) -> Attack:
        """The worst of some rotations and translations, projected onto the l2 ball."""
        config = self.config
        search = SpatialRandom(radius=config.spatial_degrees, draws=config.spatial_draws)
        return Projected(search, self.threats["l2"])

    def sampler(self) -> UniformSampler:
        """A fresh uniform sampler over the set."""
        return UniformSampler(self.attacks(), seed=self.seed)

    def mixed_sampler(self) -> MixedSampler:
        """A fresh sampler that chooses the attack of each image."""
        attacks = mixed_attacks(self.config, self.threats)
        if self.config.sampler_spatial:
            attacks = (*attacks, self.spatial_attack())
        return sampler_from(self.config, attacks, seed=self.seed)

    def noise(self) -> NoiseGenerator:
        """A fresh noise generator."""
        config = self.config
        return NoiseGenerator(
            self.channels,
            conditioning=config.conditioning,
            width=config.generator_width,
            depth=config.generator_depth,
            seed=self.seed,
        )

    def with_equal_passes(self) -> Ingredients:
        """The same, with the steps in the training attacks that the third view leaves them."""
        if not self.config.equal_passes:
            return self
        left = steps_left(self.config, self.restarts)
        longer = {norm: replace(pgd, steps=pgd.steps + left) for norm, pgd in self.pgd.items()}
        config = self.config.model_copy(update={"apgd_steps": self.config.apgd_steps + left})
        return replace(self, pgd=longer, config=config)

    def _restarted(self, attack: PGD) -> Attack:
        return Restarts(attack, self.restarts, attack.objective) if self.restarts > 1 else attack
