"""The configuration of the defenses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from multirobust.config.section import Count, NonNegative, Positive, Section

__all__ = ["DefenseConfig", "MetaMode", "Norm"]

Norm = Literal["linf", "l2", "l1"]
MetaMode = Literal["mixed_vjp", "recomputed", "unrolled", "forward_over_reverse"]


class DefenseConfig(Section):
    """Hyper-parameters of the defenses; each defense reads those that concern it.

    Args:
        beta: Weight of the consistency loss (Eq. 7).
        consistency_forward: The three views "separate"ly, as the published code, or "concatenated"
            in one pass, which shares BatchNorm's statistics among them.
        conditioning: What the generator sees: "noise_and_image", g(z, x) of Eq. 6, or "noise".
        generator_optimizer: "gradient_descent" (Eq. 10) or "sgd" with momentum and weight decay.
        meta_mode: How the exact meta-gradient is computed.
        meta_share: Share of the batch that the generator's step looks at.
        meta_every: Steps of the classifier for one of the generator.
        trades_beta: Weight of the TRADES regularizer.
        msd_steps: Steps of multi steepest descent.
        msd_linf, msd_l2, msd_l1: Its step sizes.
        ant_radius: l2 radius of the noise of `ant`; None takes the l2 threat's.
        ant_clean_share: Share of clean images in a batch of `ant`.
        extreme_attack: Of `e_at` and `ramp`: "apgd", Auto-PGD as published, or "pgd" as in
            `[attack]`.
        apgd_steps: Steps of that Auto-PGD.
        e_at_norms: What `e_at` draws from.
        e_at_rate: Share of the newest batch in the running errors of `e_at`; None, as published,
            averages over the whole run.
        e_at_power: Exponent of the running errors; 1 is published, 0 uniform.
        e_at_floor: Share of the draws that stays uniform.
        ramp_norms: The key norm of `ramp`, whose predictions count where they are correct, and the
            norm that is paired with it.
        ramp_pairing: Weight of the pairing: 5 from scratch, 2 for fine-tuning.
        ramp_projection: Share of natural training in the update of an epoch; 0 leaves it out, as
            published for fine-tuning.
        spatial_degrees: Largest angle of the spatial attack of `mng_ac_spatial`; the translation
            grows with it, and is 3 of 32 pixels at 30 degrees.
        spatial_draws: How many rotations and translations that attack tries.
    """

    beta: NonNegative = 12.0
    consistency_forward: Literal["separate", "concatenated"] = "separate"
    conditioning: Literal["noise_and_image", "noise"] = "noise_and_image"
    generator_optimizer: Literal["gradient_descent", "sgd"] = "gradient_descent"
    meta_mode: MetaMode = "mixed_vjp"
    meta_share: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    meta_every: Count = 1
    trades_beta: NonNegative = 6.0
    msd_steps: Count = 20
    msd_linf: Positive = 1 / 255
    msd_l2: Positive = 25 / 255
    msd_l1: Positive = 1.0
    ant_radius: Positive | None = None
    ant_clean_share: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.5
    extreme_attack: Literal["apgd", "pgd"] = "apgd"
    apgd_steps: Count = 10
    e_at_norms: Annotated[tuple[Norm, ...], Field(min_length=1)] = ("linf", "l1")
    e_at_rate: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    e_at_power: NonNegative = 1.0
    e_at_floor: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    ramp_norms: tuple[Norm, Norm] = ("linf", "l1")
    ramp_pairing: NonNegative = 5.0
    ramp_projection: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.5
    spatial_degrees: Annotated[float, Field(gt=0, le=180, strict=True)] = 30.0
    spatial_draws: Count = 10

    @field_validator("e_at_norms", "ramp_norms")
    @classmethod
    def _no_norm_twice(cls, norms: tuple[Norm, ...]) -> tuple[Norm, ...]:
        if len(set(norms)) < len(norms):
            raise ValueError(f"each norm must be named once, got {', '.join(norms)}")
        return norms
