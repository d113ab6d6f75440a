"""The configuration: frozen values, every field with its rule and its default.

The defaults are the paper's CIFAR-10 setting, so a recipe says only what it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from multirobust.config.data import DataConfig
from multirobust.config.defense import DefenseConfig
from multirobust.config.section import Count, Positive, Section, Seed
from multirobust.config.training import TrainingConfig

__all__ = [
    "AttackConfig",
    "DataConfig",
    "DefenseConfig",
    "EvaluationConfig",
    "ModelConfig",
    "NormAttack",
    "Recipe",
    "Section",
    "ThreatConfig",
    "TrainingConfig",
    "filled",
    "merged",
    "preset_fields",
]


class ModelConfig(Section):
    """The classifier.

    Args:
        name: A model of `multirobust list models`.
        widths: Channels of each convolution, for `small_cnn` only.
        normalize: Standardize with the training set's mean and deviation, inside the model.
    """

    name: str = "wrn_28_10"
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    normalize: bool = True


class ThreatConfig(Section):
    """The balls that attacks stay in, for training and evaluation alike.

    Args:
        preset: Radii by name (`multirobust list threats`).
        linf: Radius in place of the preset's, on the [0, 1] pixel scale.
        l2: The same for l2.
        l1: The same for l1.
        density: Share of the coordinates that one l1 step moves.
    """

    preset: str = "cifar10"
    linf: Positive | None = None
    l2: Positive | None = None
    l1: Positive | None = None
    density: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.01


class NormAttack(Section):
    """Length and step size of PGD in one norm."""

    steps: Count
    step_size: Positive


class AttackConfig(Section):
    """PGD in each norm. The defaults are those of the paper's training attacks.

    Args:
        linf: Steps and step size for linf.
        l2: Steps and step size for l2.
        l1: Steps and step size for l1.
        restarts: Independent random starts; the one of greatest loss counts.
        keep: The "last" iterate, as the paper, or the "best" (of greatest loss).
        batch_norm: During the attack, "batch" statistics, as the published code, or "running" ones;
            `e_at` and `ramp` have a setting of their own.
    """

    linf: NormAttack = NormAttack(steps=10, step_size=1 / 255)
    l2: NormAttack = NormAttack(steps=10, step_size=30 / 255)
    l1: NormAttack = NormAttack(steps=20, step_size=1.0)
    restarts: Count = 1
    keep: Literal["last", "best"] = "last"
    batch_norm: Literal["batch", "running"] = "batch"


class EvaluationConfig(Section):
    """How robust accuracy is measured.

    Args:
        suite: A suite of `multirobust list suites`.
        attack: Steps and step sizes of its PGD attacks, restarts among them. BatchNorm keeps its
            running statistics: a model is attacked as it is used.
        limit: Use only the first test images.
        batch_size: Images a pass.
        block_size: Images that are attacked together; what is done is kept after each block.
        mode: Which images an attack sees: all ("breakdown"), what earlier ones of its threat left
            standing ("per_threat"), what all earlier ones left ("cascade"), or as is usual for the
            suite ("auto").
        severities: Levels of the attacks that no norm measures, from 1 on; None takes all.
        corruptions: Folder of the published CIFAR-10-C, or one that holds it; with data.download
            it is downloaded if it is missing. None computes corruptions.
    """

    suite: str = "quick"
    attack: AttackConfig = AttackConfig(
        linf=NormAttack(steps=50, step_size=1 / 255),
        l2=NormAttack(steps=50, step_size=25 / 255),
        l1=NormAttack(steps=100, step_size=1.0),
        restarts=2,
        keep="best",
        batch_norm="running",
    )
    limit: Count | None = None
    batch_size: Count = 256
    block_size: Count = 512
    mode: Literal["auto", "breakdown", "per_threat", "cascade"] = "auto"
    severities: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    corruptions: str | None = None


class Recipe(Section):
    """One experiment: the defenses to train, on what, how, and how to measure them."""

    name: str = "custom"
    summary: str = ""
    preset: Literal["paper", "official", "plus"] = "paper"
    defenses: Annotated[tuple[str, ...], Field(min_length=1)] = ("mng_ac",)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    threats: ThreatConfig = ThreatConfig()
    attack: AttackConfig = AttackConfig()
    defense: DefenseConfig = DefenseConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, fields: Any) -> Any:
        return filled(fields) if isinstance(fields, Mapping) else fields


_PRESET_FIELDS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {"defense": {"conditioning": "noise", "generator_optimizer": "sgd"}},
    "plus": {"defenses": ("plus",)},
}


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with what their preset sets and they do not say."""
    return merged(preset_fields(fields.get("preset")), fields)


def preset_fields(preset: Any) -> dict[str, Any]:
    """Return the fields that a preset sets; none if there is no such preset."""
    return _PRESET_FIELDS.get(preset, {}) if isinstance(preset, str) else {}


def merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested fields of both; where both say something, the top one counts."""
    result = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result
