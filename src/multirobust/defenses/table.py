"""The table of defenses: every name, and what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from multirobust.attacks import (
    MSD,
    ErrorSampler,
    Sampler,
    UniformSampler,
    WorstCase,
    attacks_from,
    threats_from,
)
from multirobust.attacks.choosing import MixedSampler
from multirobust.config import Recipe
from multirobust.defenses.adversarial import (
    TRADES,
    AdversarialTraining,
    AverageTraining,
    Standard,
)
from multirobust.defenses.adversarial_noise import ANT
from multirobust.defenses.base import Defense
from multirobust.defenses.consistency import ConsistencyTraining
from multirobust.defenses.ingredients import Ingredients
from multirobust.defenses.learned_noise import MNGAC
from multirobust.defenses.mixed import MixedTraining
from multirobust.defenses.noise_sources import noise_source
from multirobust.defenses.ramp import RAMP
from multirobust.errors import lookup_error
from multirobust.threats import BALL_MAPS, L2

__all__ = ["DEFENSES", "NEEDS_UNLABELED", "Ingredients", "batch_norm_during", "build"]

NEEDS_UNLABELED = frozenset({"mng_ac_rst", "rst_linf"})
"""Defenses that are nothing new without pseudo-labeled images; a run of one needs `Data.unlabeled`.
"""


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


def _mng_ac(parts: Ingredients, *, mixed: bool = False) -> Defense:
    """MNG-AC; with pseudo-labeled data `mng_ac_rst`, Table 2.

    The labeled and the unlabeled images of a batch come mixed from the loader; the pseudo-labels
    are labels like others. Published: all images shuffled together (`data.unlabeled_share` =
    "pooled"), an epoch of all of them (`data.epoch` = "all"), 2,048 a batch. The default is that of
    Carmon et al., see `rst_linf`, so that the two rows differ in the defense alone.

    References: Madaan, Shin and Hwang, Learning to generate noise for multi-attack robustness, ICML
    2021.
    """
    parts = parts.with_equal_passes()
    return _meta_noise(parts, parts.mixed_sampler() if mixed else parts.sampler())


def _meta_noise(parts: Ingredients, sampler: Sampler | MixedSampler) -> Defense:
    """MNG-AC, or for an ablation the same with noise that nothing learns."""
    config = parts.config
    loss: dict[str, Any] = {"beta": config.beta, "forward": config.consistency_forward}
    if config.noise != "learned":
        return ConsistencyTraining(sampler, noise=noise_source(config), **loss)
    sgd = config.generator_optimizer == "sgd"
    return MNGAC(
        sampler,
        parts.noise(),
        **loss,
        momentum=0.9 if sgd else 0.0,
        weight_decay=5e-4 if sgd else 0.0,
        meta_mode=config.meta_mode,
        meta_share=config.meta_share,
        meta_every=config.meta_every,
        meta_report=config.meta_report,
        rate=config.generator_rate,
        ball_map=BALL_MAPS[config.noise_map],
    )


def _mng_ac_spatial(parts: Ingredients) -> Defense:
    """MNG-AC with a fourth attack in the uniform set: rotation and translation, projected on l2.

    Published (Table 4, "seen"): that the set of the lp norms has the spatial attack projected on
    the l2 norm. Its numbers are those of Engstrom et al., ICML 2019: the worst of 10 draws within
    30 degrees and 3 of 32 pixels.
    """
    parts = parts.with_equal_passes()
    attacks = (*parts.attacks(), parts.spatial_attack())
    return _meta_noise(parts, UniformSampler(attacks, seed=parts.seed))


def _rst_linf(parts: Ingredients) -> Defense:
    """Robust self-training: TRADES itself, on batches of labeled and pseudo-labeled images.

    The loader mixes them (`Data.unlabeled`). Published for CIFAR-10, and the default: TRADES with
    beta 6, in linf 8/255 10 steps of 0.007, half of each batch pseudo-labeled, an epoch is a pass
    over the labeled images. How long and with what optimizer is the recipe's, as for every
    defense; `cifar10_rst` has what is published.

    References: Carmon, Raghunathan, Schmidt, Liang and Duchi, Unlabeled data improves adversarial
    robustness, NeurIPS 2019.
    """
    attack = parts.divergence_attack(step_size=parts.rst_step_size())
    return TRADES(attack, beta=parts.config.trades_beta)


def _e_at(parts: Ingredients) -> Defense:
    """Extreme-norm adversarial training: linf or l1 for each batch, by their running errors.

    Published: Auto-PGD with 10 steps and BatchNorm in evaluation mode (see `batch_norm_during`);
    the error counts an image that any iterate breaks, here one that the iterate of
    greatest loss breaks in the training pass, which costs nothing. The published code updates the
    learning rate of one of its two groups of weights only; here all have the same.

    References: Croce and Hein, Adversarial robustness against multiple and single lp-threat models
    via quick fine-tuning of robust classifiers, ICML 2022.
    """
    config = parts.config
    sampler = ErrorSampler(
        tuple(parts.extreme_attack(norm) for norm in config.e_at_norms),
        seed=parts.seed,
        rate=config.e_at_rate,
        power=config.e_at_power,
        floor=config.e_at_floor,
    )
    return AdversarialTraining(sampler)


def _ramp(parts: Ingredients) -> Defense:
    """RAMP with the optimizer's momentum and weight decay; see there for what departs.

    Published: Auto-PGD with 10 steps in linf and l1, BatchNorm in evaluation mode (see
    `batch_norm_during`), a pairing of 5 and a projection of 0.5 from scratch; 2 and none for
    fine-tuning (see `config.finetuning`).

    References: Jiang and Singh, RAMP: Boosting adversarial robustness against multiple lp
    perturbations for universal robustness, NeurIPS 2024.
    """
    config, training = parts.config, parts.training
    key, other = (parts.extreme_attack(norm) for norm in config.ramp_norms)
    return RAMP(
        (key, other),
        pairing=config.ramp_pairing,
        projection=config.ramp_projection,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )


def _plus(parts: Ingredients) -> Defense:
    """What did best of all rows at equal passes (`reproduce choose-the-attack`), by `plus_*`.

    It is `sat_mixed` with that sampler and so many steps, and the consistency of `sat_ac` without a
    third view; with `plus_beta` 0 also without consistency.
    """
    config = parts.config
    chosen = {"sampler": config.plus_sampler, "apgd_steps": config.plus_steps}
    sampler = replace(parts, config=config.model_copy(update=chosen)).mixed_sampler()
    if not config.plus_beta:
        return MixedTraining(sampler)
    return ConsistencyTraining(
        sampler, beta=config.plus_beta, forward=config.consistency_forward, noise=None
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
    "mng_ac_spatial": _mng_ac_spatial,
    "rst_linf": _rst_linf,
    "mng_ac_rst": _mng_ac,
    "e_at": _e_at,
    "ramp": _ramp,
    "sat_mixed": lambda parts: MixedTraining(parts.mixed_sampler()),
    "mng_ac_mixed": lambda parts: _mng_ac(parts, mixed=True),
    "plus": _plus,
}


def batch_norm_during(name: str, recipe: Recipe) -> Literal["batch", "running"]:
    """Return which statistics BatchNorm uses during the attacks of a defense, by its name."""
    if name in ("e_at", "ramp"):
        return recipe.defense.extreme_batch_norm
    return recipe.attack.batch_norm


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
    parts = Ingredients(
        threats, pgd, recipe.attack.restarts, recipe.defense, recipe.training, channels, seed
    )
    return DEFENSES[name](parts)
