"""The configuration: frozen values that a recipe file describes and `--set` overrides.

A recipe is a TOML file. Everything in it has a default (the paper's CIFAR-10 setting), so a recipe
says only what it changes. `load_recipe` reports all problems of a recipe at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from multirobust import catalog
from multirobust.errors import ConfigError, InputError, lookup_error, suggestion

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

Norm = Literal["linf", "l2", "l1"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen group of fields; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """What is learned from.

    Args:
        name: A data set of `multirobust list datasets`.
        folder: Where its files are; None reads the environment variable MULTIROBUST_DATA.
        download: Fetch what is missing, with its checksum.
        train_limit: Use only the first images of the training set.
        test_limit: Use only the first images of the test set.
        validation: How many training images to hold out.
        augmentation: "auto" for the published one of the data set, or "none".
    """

    name: str = "cifar10"
    folder: str | None = None
    download: bool = False
    train_limit: Count | None = None
    test_limit: Count | None = None
    validation: Annotated[int, Field(ge=0)] = 0
    augmentation: Literal["auto", "none"] = "auto"


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
    density: Annotated[float, Field(gt=0, le=1)] = 0.01


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
        batch_norm: During the attack, "batch" statistics, as the published code, or "running" ones.
    """

    linf: NormAttack = NormAttack(steps=10, step_size=1 / 255)
    l2: NormAttack = NormAttack(steps=10, step_size=30 / 255)
    l1: NormAttack = NormAttack(steps=20, step_size=1.0)
    restarts: Count = 1
    keep: Literal["last", "best"] = "last"
    batch_norm: Literal["batch", "running"] = "batch"


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
    ant_clean_share: Annotated[float, Field(ge=0, lt=1)] = 0.5


class TrainingConfig(Section):
    """The one loop.

    Args:
        epochs: Passes over the training set.
        batch_size: Images a step; at least 2.
        peak_lr: Top of the triangular schedule.
        peak_at: Where the top lies, as a share of all steps.
        momentum: Of SGD.
        weight_decay: Of SGD, on every parameter.
        device: "auto", "cpu" or "cuda".
        precision: Fabric's name: "32-true", "bf16-mixed" or "64-true".
        checkpoint_seconds: Save at least this often, besides at the end of every epoch.
        log_steps: Steps between two lines of metrics.
    """

    epochs: Count = 30
    batch_size: Annotated[int, Field(ge=2)] = 128
    peak_lr: Positive = 0.21
    peak_at: Annotated[float, Field(gt=0, lt=1)] = 0.4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 5e-4
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    checkpoint_seconds: NonNegative = 300.0
    log_steps: Count = 50


class EvaluationConfig(Section):
    """How robust accuracy is measured.

    Args:
        suite: A suite of `multirobust list suites`.
        attack: Steps and step sizes of its PGD attacks, restarts among them.
        limit: Use only the first test images.
        batch_size: Images a pass.
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


class Recipe(Section):
    """One experiment: the defenses to train, on what, how, and how to measure them."""

    name: str = "custom"
    summary: str = ""
    preset: Literal["paper", "official"] = "paper"
    defenses: Annotated[tuple[str, ...], Field(min_length=1)] = ("mng_ac",)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
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
        """What the preset sets and the recipe does not say."""
        if isinstance(fields, Mapping) and fields.get("preset") in _PRESET_FIELDS:
            return _merged(_PRESET_FIELDS[fields["preset"]], fields)
        return fields


_PRESET_FIELDS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {"defense": {"conditioning": "noise", "generator_optimizer": "sgd"}},
}

_NAMES = {
    ("data", "name"): ("data set", catalog.DATASETS),
    ("model", "name"): ("model", catalog.MODELS),
    ("threats", "preset"): ("threat preset", catalog.THREATS),
    ("evaluation", "suite"): ("suite", catalog.SUITES),
}


def shipped_recipes() -> dict[str, str]:
    """Return the names of the recipes in the package, each with its summary."""
    found = sorted(entry for entry in _recipe_folder().iterdir() if entry.name.endswith(".toml"))
    return {
        entry.name.removesuffix(".toml"): tomllib.loads(entry.read_text("utf-8")).get("summary", "")
        for entry in found
    }


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by its name, and apply overrides.

    Args:
        source: Path of a TOML file, or a name of `multirobust list recipes`.
        overrides: "path.to.field=value" each, the value written as in TOML (bare words are text).

    Returns:
        The recipe, every field filled.

    Raises:
        ConfigError: With one line for each problem: the field's path, the rule, the value.
        InputError: If the recipe cannot be found or is not TOML.
    """
    fields = _read(source)
    problems: list[str] = []
    for override in overrides:
        problems += _apply(fields, override)
    fields.setdefault("name", Path(source).stem)
    problems += _name_problems(fields)
    base = _merged(Recipe().model_dump(), _PRESET_FIELDS.get(str(fields.get("preset")), {}))
    try:
        recipe = Recipe.model_validate(_merged(base, fields))
    except ValidationError as error:
        raise ConfigError(problems + [_sentence(detail) for detail in error.errors()]) from None
    problems += _cross_problems(recipe)
    if problems:
        raise ConfigError(problems)
    return recipe


def to_toml(recipe: Recipe) -> str:
    """Return the whole recipe as TOML; `load_recipe` reads back an equal one."""
    lines: list[str] = []
    _write_table(recipe.model_dump(mode="json", exclude_none=True), "", lines)
    return "\n".join(lines).strip() + "\n"


def _recipe_folder() -> Any:
    return files("multirobust") / "recipes"


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.suffix != ".toml":
        names = [entry.name.removesuffix(".toml") for entry in _recipe_folder().iterdir()]
        known = [name for name in names if not name.startswith("_")]
        if str(source) not in known:
            error = lookup_error("recipe", str(source), known)
            raise InputError(f"{error} Or give the path of a .toml file.")
        text = (_recipe_folder() / f"{source}.toml").read_text("utf-8")
    else:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Recipe {str(path)!r} cannot be read: {error}.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"Recipe {str(source)!r} is not valid TOML: {error}.") from None


def _apply(fields: dict[str, Any], override: str) -> list[str]:
    """Write one override into the fields; return its problem, if it has one."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return [
            f"--set {override!r}: must be written path.to.field=value, such as training.epochs=3."
        ]
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for key in keys[:-1]:
        fields = fields.setdefault(key, {})
        if not isinstance(fields, dict):
            return [f"--set {override!r}: {key!r} is not a group of fields."]
    fields[keys[-1]] = value
    return []


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _name_problems(fields: Mapping[str, Any]) -> list[str]:
    problems = []
    for (section, field), (kind, table) in _NAMES.items():
        group = fields.get(section, {})
        value = group.get(field) if isinstance(group, Mapping) else None
        if isinstance(value, str) and value not in table:
            problems.append(f"{section}.{field}: {lookup_error(kind, value, table)}")
    defenses = fields.get("defenses", ())
    for name in defenses if isinstance(defenses, (list, tuple)) else ():
        if isinstance(name, str) and name not in catalog.DEFENSES:
            problems.append(f"defenses: {lookup_error('defense', name, catalog.DEFENSES)}")
    return problems


def _cross_problems(recipe: Recipe) -> list[str]:
    problems = []
    if recipe.model.widths is not None and recipe.model.name != "small_cnn":
        problems.append(
            f"model.widths: only small_cnn has this field, the model is {recipe.model.name!r}; drop it."
        )
    for field in ("defenses", "seeds"):
        values = getattr(recipe, field)
        if len(set(values)) < len(values):
            problems.append(f"{field}: each may stand only once, got {list(values)}.")
    return problems


def _sentence(detail: Any) -> str:
    """One line for one of pydantic's errors."""
    path = ".".join(str(part) for part in detail["loc"]) or "recipe"
    if detail["type"] == "extra_forbidden":
        known = _fields_at(detail["loc"][:-1])
        name = str(detail["loc"][-1])
        return f"{path}: no such field.{suggestion(name, known)} Known: {', '.join(sorted(known))}."
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{path}: {message}, got {detail['input']!r}."


def _fields_at(location: Sequence[int | str]) -> list[str]:
    section: Any = Recipe
    for key in location:
        section = section.model_fields[str(key)].annotation
    return list(section.model_fields)


def _write_table(table: Mapping[str, Any], path: str, lines: list[str]) -> None:
    """Append one TOML table: its plain fields first, then the tables within it."""
    if path and any(not isinstance(value, Mapping) for value in table.values()):
        lines += ["", f"[{path}]"]
    for key, value in table.items():
        if not isinstance(value, Mapping):
            lines.append(f"{key} = {_toml_value(value)}")
    for key, value in table.items():
        if isinstance(value, Mapping):
            _write_table(value, f"{path}.{key}" if path else key, lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
