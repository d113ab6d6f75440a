"""Samplers of attacks for single images, as a recipe describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multirobust.attacks.base import Attack
from multirobust.attacks.choosing.cascade import Cascade
from multirobust.attacks.choosing.drawing import DrawnSampler
from multirobust.attacks.choosing.excess import HedgeShares, UCBShares
from multirobust.attacks.choosing.race import Race
from multirobust.attacks.choosing.router import Router
from multirobust.attacks.choosing.sampler import MixedSampler
from multirobust.attacks.choosing.shapley import ShapleyShares
from multirobust.attacks.choosing.shares import EqualShares, ErrorShares, Shares
from multirobust.attacks.lockstep_apgd import LockstepAPGD
from multirobust.attacks.objectives import DLR, CrossEntropy
from multirobust.config import DefenseConfig
from multirobust.threats import Threat

__all__ = ["mixed_attacks", "sampler_from"]

_OBJECTIVES = {"cross_entropy": CrossEntropy(), "dlr": DLR()}


def mixed_attacks(config: DefenseConfig, threats: Mapping[str, Threat]) -> tuple[Attack, ...]:
    """Return the Auto-PGD of each norm and objective that a configuration names.

    Args:
        config: Its `sampler_norms`, `sampler_objectives` and `apgd_steps` count.
        threats: By norm.
    """
    return tuple(
        LockstepAPGD(
            threat=threats[norm], steps=config.apgd_steps, objective=_OBJECTIVES[objective]
        )
        for objective in config.sampler_objectives
        for norm in config.sampler_norms
    )


def sampler_from(
    config: DefenseConfig, attacks: tuple[Attack, ...], *, seed: int = 0
) -> MixedSampler:
    """Return a fresh sampler over attacks.

    Args:
        config: Names the sampler and has its settings.
        attacks: The set to choose from.
        seed: Of its random numbers.
    """
    name, count = config.sampler, len(attacks)
    if name in _SHARES:
        shares, weighted = _SHARES[name](config, count), config.sampler_importance
        return DrawnSampler(attacks, shares, importance=weighted, seed=seed)
    if name == "uniform":
        return DrawnSampler(attacks, EqualShares(count), mixing="batch", seed=seed)
    by_quota = config.sampler_quotas != "none"
    shares = _SHARES[config.sampler_quotas if by_quota else "stratified"](config, count)
    if name == "cascade":
        choice = {"margin": config.cascade_margin, "order": config.cascade_order}
        return Cascade(attacks, shares, **choice, seed=seed)
    if name == "race":
        return Race(attacks, shares, quotas=by_quota, laps=config.race_laps, seed=seed)
    explore, rate = config.router_explore, config.router_rate
    return Router(attacks, shares, quotas=by_quota, explore=explore, rate=rate, seed=seed)


def _error(config: DefenseConfig, count: int) -> Shares:
    rate = None if config.sampler_rate == "run" else config.sampler_rate
    return ErrorShares(count, rate=rate, power=config.sampler_power, floor=config.sampler_floor)


def _shapley(config: DefenseConfig, count: int) -> Shares:
    return ShapleyShares(
        count,
        every=config.shapley_every,
        images=config.shapley_images,
        rate=config.shapley_rate,
        floor=config.sampler_floor,
    )


def _hedge(config: DefenseConfig, count: int) -> Shares:
    floor, decay = config.sampler_floor, config.hedge_decay
    return HedgeShares(count, step=config.hedge_step, decay=decay, floor=floor)


def _ucb(config: DefenseConfig, count: int) -> Shares:
    floor, decay = config.sampler_floor, config.hedge_decay
    return UCBShares(count, width=config.ucb_width, decay=decay, floor=floor)


_SHARES: dict[str, Callable[[DefenseConfig, int], Shares]] = {
    "stratified": lambda config, count: EqualShares(count),
    "error": _error,
    "shapley": _shapley,
    "hedge": _hedge,
    "ucb": _ucb,
}
