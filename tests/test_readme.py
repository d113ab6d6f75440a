"""What the README says is run: its Python, its commands, and its numbers against results/."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")

sys.path.insert(0, str(ROOT / "benchmarks"))


def _python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.S)


def _commands() -> list[list[str]]:
    lines = re.findall(r"^    (multirobust .*)$", README, re.M)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_python_of_the_readme_runs(monkeypatch, capsys):
    from multirobust.config import load_recipe
    from multirobust.experiment import api

    short = load_recipe(
        "digits",
        ["training.epochs=1", "evaluation.limit=20", "evaluation.attack.restarts=1"],
    )
    monkeypatch.setattr(api, "recipe_for", lambda name: short)
    blocks = _python_blocks()
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "union" in capsys.readouterr().out


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_of_the_readme_parses(words):
    """Its options and recipe exist; nothing is trained."""
    import typer

    from multirobust.cli import app
    from multirobust.config import load_recipe

    command = typer.main.get_command(app).commands[words[1]]
    context = command.make_context(words[1], words[2:], resilient_parsing=False)
    if "recipe" in context.params:
        load_recipe(context.params["recipe"], list(context.params.get("overrides") or []))


def test_the_tables_of_all_pages_are_made_from_the_results():
    from readme_tables import PAGES, TABLE, with_tables

    assert len(TABLE.findall(README)) >= 2
    for page in PAGES:
        text = page.read_text("utf-8")
        assert with_tables(text) == text, f"{page}: run `python benchmarks/readme_tables.py`"


def test_every_link_of_the_readme_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
