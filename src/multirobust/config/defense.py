"""The configuration of the defenses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from multirobust.config.section import Count, NonNegative, Positive, Section

__all__ = ["DefenseConfig", "MetaMode", "Norm"]

Norm = Literal["linf", "l2", "l1"]
MetaMode = Literal["mixed_vjp", "recomputed", "unrolled", "forward_over_reverse"]
_Share = Annotated[float, Field(ge=0, le=1, strict=True)]
_Rate = Annotated[float, Field(gt=0, le=1, strict=True)]
_Sampler = Literal[
    "uniform",
    "stratified",
    "error",
    "shapley",
    "hedge",
    "ucb",
    "router",
    "race",
    "cascade",
]


class DefenseConfig(Section):
    """Hyper-parameters of the defenses; each defense reads those that concern it.

    Args:
        beta: Weight of the consistency loss (Eq. 7).
        consistency_forward: The three views "separate"ly, as the published code, or "concatenated"
            in one pass, which shares BatchNorm's statistics among them.
        conditioning: What the generator sees: "noise_and_image", g(z, x) of Eq. 6, or "noise".
        generator_width: Channels of the generator's hidden layers.
        generator_depth: Number of its 3x3 convolutions.
        generator_rate: Learning rate of the generator over the classifier's.
        generator_optimizer: "gradient_descent" (Eq. 10) or "sgd" with momentum and weight decay.
        meta_mode: How the exact meta-gradient is computed.
        meta_share: Share of the batch that the generator's step looks at.
        meta_every: Steps of the classifier for one of the generator; 0 leaves the generator as it
            was drawn.
        meta_report: Whether the log tells the meta-loss before and after the generator's step, on
            the same batch and noise, for two more forward passes and one backward pass.
        noise: Third view of `mng_ac` and its relatives: "learned", or for an ablation "gaussian",
            "uniform_in_ball", or "none" for two views.
        noise_map: How generated or Gaussian noise becomes an image in the threat: "project" onto
            it, "smooth", or "straight_through": the projection with the derivative of the identity,
            or in "straight_through_smooth" with that of the smooth map.
        equal_passes: Whether a third view that costs less than the learned one leaves the rest to
            the training attacks, as further steps of PGD.
        trades_beta: Weight of the TRADES regularizer.
        rst_step_size: Step of the linf attack of `rst_linf`, in place of `attack.linf.step_size`;
            None takes the published 0.007 for a radius of 8/255, and in proportion for others.
        msd_steps: Steps of multi steepest descent.
        msd_linf, msd_l2, msd_l1: Its step sizes.
        ant_radius: l2 radius of the noise of `ant`; None takes the l2 threat's.
        ant_clean_share: Share of clean images in a batch of `ant`.
        extreme_attack: Of `e_at` and `ramp`: "apgd", Auto-PGD as published, or "pgd" as in
            `[attack]`.
        extreme_batch_norm: BatchNorm's statistics during the attacks of `e_at` and `ramp`, in place
            of `attack.batch_norm`; published: "running".
        apgd_steps: Steps of that Auto-PGD, and of `sat_mixed` and `mng_ac_mixed`.
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
        sampler: How `sat_mixed` and `mng_ac_mixed` choose the attack of each image: "uniform", one
            at random for the whole batch; "stratified", each for an equal part of the batch;
            "error", "shapley", "hedge" or "ucb", in learned parts; "router", "race" or "cascade",
            by the image.
        sampler_norms: The norms that it chooses from.
        sampler_objectives: The losses that it chooses from: "cross_entropy" and "dlr".
        sampler_spatial: Whether the spatial attack of `mng_ac_spatial` is one more to choose.
        sampler_floor: Share of the images, or of the quotas, that stays uniform.
        sampler_rate: Of "error": share of the newest batch in the running errors; "run", the rule
            of E-AT, averages over the whole run.
        sampler_power: Of "error": exponent of the running errors; 1 is the rule of E-AT.
        sampler_importance: Whether the loss of an image is weighted by 1 / (k p), p the probability
            of its attack; not of "router", "race" and "cascade".
        sampler_quotas: What share of the images each attack gets from "router" and "race", and
            comes first in "cascade": by the rule of that name, or "none".
        shapley_every: Steps from one probe with all attacks to the next.
        shapley_images: How many images of the batch are probed; None probes all.
        shapley_rate: Share of the newest probe in the moving average.
        hedge_step: Learning rate of "hedge".
        hedge_decay: Share of what they know that "hedge" and "ucb" forget with each batch.
        ucb_width: Of the confidence bound of "ucb", in nats.
        router_explore: Share of the images whose attack "router" draws.
        router_rate: Share of the newest batch in what "router" knows of each attack.
        race_laps: Steps of every attack before "race" goes on with one.
        cascade_margin: How far the logit of another class must be above that of the label, for
            "cascade" to count an image as broken.
        cascade_order: Of the attacks of an image in "cascade": "drawn" with the quotas, or
            "sorted", the greatest quota first.
        plus_sampler: The `sampler` of `plus`; its settings are those above.
        plus_steps: Steps of Auto-PGD in `plus`, in place of `apgd_steps`.
        plus_beta: Weight of the consistency of clean and adversarial predictions in `plus`, in
            place of `beta`; 0 leaves it out, and its pass over the clean images.
    """

    beta: NonNegative = 12.0
    consistency_forward: Literal["separate", "concatenated"] = "separate"
    conditioning: Literal["noise_and_image", "noise"] = "noise_and_image"
    generator_width: Count = 20
    generator_depth: Count = 1
    generator_rate: NonNegative = 1.0
    generator_optimizer: Literal["gradient_descent", "sgd"] = "gradient_descent"
    meta_mode: MetaMode = "mixed_vjp"
    meta_share: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    meta_every: Annotated[int, Field(ge=0, strict=True)] = 1
    meta_report: Annotated[bool, Field(strict=True)] = False
    noise: Literal["learned", "gaussian", "uniform_in_ball", "none"] = "learned"
    noise_map: Literal["project", "smooth", "straight_through", "straight_through_smooth"] = (
        "project"
    )
    equal_passes: Annotated[bool, Field(strict=True)] = False
    trades_beta: NonNegative = 6.0
    rst_step_size: Positive | None = None
    msd_steps: Count = 20
    msd_linf: Positive = 1 / 255
    msd_l2: Positive = 25 / 255
    msd_l1: Positive = 1.0
    ant_radius: Positive | None = None
    ant_clean_share: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.5
    extreme_attack: Literal["apgd", "pgd"] = "apgd"
    extreme_batch_norm: Literal["batch", "running"] = "running"
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
    sampler: _Sampler = "stratified"
    sampler_norms: Annotated[tuple[Norm, ...], Field(min_length=1)] = ("linf", "l2", "l1")
    sampler_objectives: Annotated[
        tuple[Literal["cross_entropy", "dlr"], ...], Field(min_length=1)
    ] = ("cross_entropy",)
    sampler_spatial: Annotated[bool, Field(strict=True)] = False
    sampler_floor: _Share = 0.15
    sampler_rate: _Rate | Literal["run"] = 0.05
    sampler_power: NonNegative = 2.0
    sampler_importance: Annotated[bool, Field(strict=True)] = False
    sampler_quotas: Literal["stratified", "error", "shapley", "hedge", "ucb", "none"] = "shapley"
    shapley_every: Count = 50
    shapley_images: Count | None = None
    shapley_rate: _Rate = 0.3
    hedge_step: Positive = 0.05
    hedge_decay: _Rate = 0.01
    ucb_width: NonNegative = 0.1
    router_explore: _Share = 0.15
    router_rate: _Rate = 0.05
    race_laps: Count = 1
    cascade_margin: NonNegative = 0.0
    cascade_order: Literal["drawn", "sorted"] = "drawn"
    plus_sampler: _Sampler = "ucb"
    plus_steps: Count = 7
    plus_beta: NonNegative = 12.0

    @field_validator("e_at_norms", "ramp_norms", "sampler_norms")
    @classmethod
    def _no_norm_twice(cls, norms: tuple[Norm, ...]) -> tuple[Norm, ...]:
        if len(set(norms)) < len(norms):
            raise ValueError(f"each norm must be named once, got {', '.join(norms)}")
        return norms

    @field_validator("sampler_objectives")
    @classmethod
    def _no_loss_twice(cls, losses: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(losses)) < len(losses):
            raise ValueError(f"each loss must be named once, got {', '.join(losses)}")
        return losses
