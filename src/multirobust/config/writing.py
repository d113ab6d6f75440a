"""Writing recipes as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from multirobust.config.sections import Recipe

__all__ = ["to_toml"]


def to_toml(recipe: Recipe) -> str:
    """Return the whole recipe as TOML; `load_recipe` reads back an equal one."""
    lines: list[str] = []
    _write_table(recipe.model_dump(mode="json", exclude_none=True), "", lines)
    return "\n".join(lines).strip() + "\n"


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
        # JSON escapes as TOML does, but for one control character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
