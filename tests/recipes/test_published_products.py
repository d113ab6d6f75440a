"""The products that results/ holds are what this code makes of their records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multirobust.recipes import load_reproduction, remade
from multirobust.recipes.kinds import KINDS
from multirobust.report import read_record

FOLDER = Path(__file__).resolve().parents[2] / "results" / "reproduction"
FROM_MODELS = ("surfaces", "boundary", "noise")
PAGES = sorted(FOLDER.glob("*/*.md"))


def target_of(page: Path) -> str:
    """The table or figure of a page; choices on held-out images have a page of their own."""
    return page.stem.removesuffix("-validation")


TABLES = [page for page in PAGES if load_reproduction(target_of(page)).kind not in FROM_MODELS]


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def test_there_are_products_and_each_is_of_a_known_table_or_figure():
    assert PAGES
    assert all(load_reproduction(target_of(page)).kind in KINDS for page in PAGES)
    assert all(page.with_suffix(".json").is_file() for page in PAGES)


@pytest.mark.parametrize("page", TABLES, ids=name_of)
def test_a_stored_table_is_that_of_its_record(page):
    data = page.parent.name.partition("-")[0]
    reproduction = load_reproduction(target_of(page))
    split = "validation" if page.stem.endswith("-validation") else "test"
    product = remade(reproduction, data, read_record(page.with_suffix(".json")), split=split)
    assert page.read_text("utf-8") == product.page(page.stem)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_stored_product_says_how_it_was_made_and_names_no_machine_path(page):
    text = page.with_suffix(".json").read_text("utf-8")
    content = json.loads(text)
    assert content["command"].startswith(f"multirobust reproduce {target_of(page)}")
    assert "commit" in text
    assert "/home/" not in text
    assert "/tmp/" not in text
