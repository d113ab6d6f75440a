"""The configuration: frozen values that a recipe file describes and `--set` overrides.

A recipe is a TOML file. Everything in it has a default (the paper's CIFAR-10 setting), so a recipe
says only what it changes. `load_recipe` reports all problems of a recipe at once.
"""

from multirobust.config.reading import load_recipe, shipped_recipes
from multirobust.config.sections import (
    AttackConfig,
    DataConfig,
    DefenseConfig,
    EvaluationConfig,
    ModelConfig,
    NormAttack,
    Recipe,
    ThreatConfig,
    TrainingConfig,
)
from multirobust.config.writing import to_toml

__all__ = [
    "AttackConfig",
    "DataConfig",
    "DefenseConfig",
    "EvaluationConfig",
    "ModelConfig",
    "NormAttack",
    "Recipe",
    "ThreatConfig",
    "TrainingConfig",
    "load_recipe",
    "shipped_recipes",
    "to_toml",
]
