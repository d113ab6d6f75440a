"""The configuration of the defenses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from multirobust.config.section import Count, NonNegative, Positive, Section

__all__ = ["DefenseConfig"]


class DefenseConfig(Section):
    """Hyper-parameters of the defenses; each defense reads those that concern it.

    Args:
        beta: Weight of the consistency loss (Eq. 7).
        consistency_forward: The three views "separate"ly, as the published code, or "concatenated"
            in one pass, which shares BatchNorm's statistics among them.
        conditioning: What the generator sees: "noise_and_image", g(z, x) of Eq. 6, or "noise".
        generator_optimizer: "gradient_descent" (Eq. 10) or "sgd" with momentum and weight decay.
        meta_mode: How the exact meta-gradient is computed.
        trades_beta: Weight of the TRADES regularizer.
        msd_steps: Steps of multi steepest descent.
        msd_linf, msd_l2, msd_l1: Its step sizes.
        ant_radius: l2 radius of the noise of `ant`; None takes the l2 threat's.
        ant_clean_share: Share of clean images in a batch of `ant`.
    """

    beta: NonNegative = 12.0
    consistency_forward: Literal["separate", "concatenated"] = "separate"
    conditioning: Literal["noise_and_image", "noise"] = "noise_and_image"
    generator_optimizer: Literal["gradient_descent", "sgd"] = "gradient_descent"
    meta_mode: Literal["mixed_vjp", "unrolled", "forward_over_reverse"] = "mixed_vjp"
    trades_beta: NonNegative = 6.0
    msd_steps: Count = 20
    msd_linf: Positive = 1 / 255
    msd_l2: Positive = 25 / 255
    msd_l1: Positive = 1.0
    ant_radius: Positive | None = None
    ant_clean_share: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.5
