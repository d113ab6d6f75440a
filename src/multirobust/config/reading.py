"""Reading recipes: files and shipped names, overrides, and all problems at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multirobust import catalog
from multirobust.config.data import is_path
from multirobust.config.sections import Recipe, filled, merged, preset_fields
from multirobust.errors import ConfigError, InputError, lookup_error, suggestion

__all__ = ["load_recipe", "shipped_recipes"]

_NAMES = {
    ("data", "name"): ("data set", catalog.DATASETS),
    ("model", "name"): ("model", catalog.MODELS),
    ("threats", "preset"): ("threat preset", catalog.THREATS),
    ("evaluation", "suite"): ("suite", catalog.SUITES),
}


def shipped_recipes() -> dict[str, str]:
    """Return the names of the recipes in the package, each with its summary."""
    found = {_shipped(entry.name): entry for entry in _recipe_folder().iterdir()}
    return {
        name: tomllib.loads(found[name].read_text("utf-8")).get("summary", "")
        for name in sorted(found)
        if name
    }


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by its name, and apply overrides.

    Args:
        source: Path of a TOML file, or a name of `multirobust list recipes`.
        overrides: "path.to.field=value" each, the value written as in TOML (bare words are text).
            What a preset among them sets wins over the file, and other overrides over it.

    Returns:
        The recipe, every field filled.

    Raises:
        ConfigError: With one line for each problem: the field's path, the rule, the value.
        InputError: If the recipe cannot be found or is not TOML.
    """
    fields = _read(source)
    chosen = [text for text in overrides if text.partition("=")[0].strip() == "preset"]
    problems = [problem for text in chosen for problem in _apply(fields, text)]
    if chosen:
        fields = merged(fields, preset_fields(fields.get("preset")))
    for override in overrides:
        if override not in chosen:
            problems += _apply(fields, override)
    fields.setdefault("name", Path(source).stem)
    problems += _name_problems(fields)
    try:
        recipe = Recipe.model_validate(merged(Recipe().model_dump(), filled(fields)))
    except ValidationError as error:
        raise ConfigError(problems + [_sentence(detail) for detail in error.errors()]) from None
    problems += _cross_problems(recipe)
    if problems:
        raise ConfigError(problems)
    return recipe


def _recipe_folder() -> Any:
    return files("multirobust") / "recipes"


def _shipped(file: str) -> str:
    """Return the name of the recipe in a file, empty if it holds none."""
    return file.removesuffix(".toml") if file.endswith(".toml") else ""


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.suffix != ".toml":
        known = [name for entry in _recipe_folder().iterdir() if (name := _shipped(entry.name))]
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
    except (ValueError, RecursionError) as error:  # too many digits, or brackets, are no TOMLError
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
    except (ValueError, RecursionError):
        value = text.strip()
    for key in keys[:-1]:
        fields = fields.setdefault(key, {})
        if not isinstance(fields, dict):
            return [f"--set {override!r}: {key!r} is not a group of fields."]
    fields[keys[-1]] = value
    return []


def _name_problems(fields: Mapping[str, Any]) -> list[str]:
    problems = []
    for (section, field), (kind, table) in _NAMES.items():
        group = fields.get(section, {})
        value = group.get(field) if isinstance(group, Mapping) else None
        own = table is catalog.DATASETS and isinstance(value, str) and is_path(value)
        if isinstance(value, str) and value not in table and not own:
            problems.append(f"{section}.{field}: {_unknown(kind, value, table)}")
    defenses = fields.get("defenses", ())
    names = defenses if isinstance(defenses, (list, tuple)) else ()
    unknown = [n for n in names if isinstance(n, str) and n not in catalog.DEFENSES]
    return problems + [
        f"defenses: {lookup_error('defense', name, catalog.DEFENSES)}" for name in unknown
    ]


def _unknown(kind: str, name: str, table: Mapping[str, str]) -> str:
    """Return what is wrong with a name that is not in its table."""
    if table is catalog.DATASETS and name in catalog.EVALUATION_SETS:
        return (
            f"{name!r} has test images only; train on cifar10, and evaluate on it with "
            "evaluation.suite='corruptions' and its folder as evaluation.corruptions."
        )
    more = " Or give the path of a folder, with a slash, or of an .npz file."
    return f"{lookup_error(kind, name, table)}{more if table is catalog.DATASETS else ''}"


def _cross_problems(recipe: Recipe) -> list[str]:
    problems = []
    if recipe.name in ("", ".", "..") or any(c in "/\\" or ord(c) < 32 for c in recipe.name):
        problems.append(
            "name: must be the name of a folder, without slashes and control characters, got "
            f"{recipe.name!r}; choose another."
        )
    if recipe.model.widths is not None and recipe.model.name != "small_cnn":
        problems.append(
            f"model.widths: only small_cnn has this field, the model is {recipe.model.name!r}; "
            "drop it."
        )
    if recipe.training.select == "union" and recipe.data.validation == 0:
        problems.append(
            "training.select: 'union' needs images that are held out of training, got "
            "data.validation 0; set it to a number such as 1000, or training.select to 'last'."
        )
    if recipe.training.fold_batch_norm and recipe.attack.batch_norm != "running":
        problems.append(
            "training.fold_batch_norm: running statistics can be folded, those of a batch cannot, "
            f"got attack.batch_norm {recipe.attack.batch_norm!r}; set it to 'running', or drop "
            "training.fold_batch_norm."
        )
    if recipe.evaluation.attack.batch_norm != "running":
        problems.append(
            "evaluation.attack.batch_norm: must be 'running', since a model is attacked as it is "
            f"used, got {recipe.evaluation.attack.batch_norm!r}; drop it."
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
    if detail["type"] == "value_error":
        return f"{path}: {detail['ctx']['error']}."
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{path}: {message}, got {detail['input']!r}."


def _fields_at(location: Sequence[int | str]) -> list[str]:
    section: Any = Recipe
    for key in location:
        section = section.model_fields[str(key)].annotation
    return list(section.model_fields)
