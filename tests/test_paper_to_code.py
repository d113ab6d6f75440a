"""Every name, file, test and command of the page that leads from the paper to the code exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "paper-to-code.md").read_text("utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]
CODE = sorted({code for row in ROWS for code in re.findall(r"`([^`]+)`", row)})
COMMANDS = [code for code in CODE if code.startswith("multirobust ")]
PATHS = [code for code in CODE if "/" in code]
NAMES = [code for code in CODE if re.fullmatch(r"[a-z]\w*(\.\w+)+", code)]


def resolved(name: str) -> object:
    """Import as much of a dotted name as there are modules; the rest are attributes."""
    parts = ["multirobust", *name.split(".")]
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def first_cells() -> list[str]:
    return [row.split("|")[1].strip() for row in ROWS]


def test_every_equation_and_line_and_table_and_figure_has_its_row():
    cells = first_cells()
    assert [c for c in cells if c.startswith("Eq.")] == [f"Eq. ({n})" for n in range(1, 12)]
    assert [c for c in cells if c.isdigit()] == [str(n) for n in range(1, 10)]
    assert [c for c in cells if c.startswith("Table")] == [f"Table {n}" for n in range(1, 6)]
    assert [c for c in cells if c.startswith("Figure")] == [f"Figure {n}" for n in range(1, 7)]


def test_every_piece_of_code_is_of_a_kind_that_is_checked():
    assert set(CODE) - {*COMMANDS, *PATHS, *NAMES} == {"paper"}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name):
    assert resolved(name) is not None


@pytest.mark.parametrize("place", PATHS)
def test_every_file_and_every_test_is_there(place):
    path, _, test = place.partition("::")
    assert (ROOT / path).is_file()
    assert not test or f"def {test}(" in (ROOT / path).read_text("utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_a_reproduction_that_is_there(command):
    import typer

    from multirobust.cli import app

    words = shlex.split(command)[1:]
    known = typer.main.get_command(app).commands
    known[words[0]].make_context(words[0], words[1:], resilient_parsing=False)
    assert (ROOT / "src/multirobust/recipes/paper" / f"{words[1]}.toml").is_file()


def test_every_reproduction_has_its_row():
    recipes = {path.stem for path in (ROOT / "src/multirobust/recipes/paper").glob("*.toml")}
    assert recipes == {shlex.split(command)[-1] for command in COMMANDS}
