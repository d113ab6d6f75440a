"""The names a user can write are exactly those that something answers to."""

from __future__ import annotations

import pytest

from multirobust import catalog
from multirobust.config import Recipe
from multirobust.data import DATASETS
from multirobust.defenses import DEFENSES
from multirobust.models import MODELS
from multirobust.threats import THREAT_PRESETS, threats_for


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (catalog.DEFENSES, DEFENSES),
        (catalog.MODELS, MODELS),
        (catalog.DATASETS, DATASETS),
        (catalog.THREATS, THREAT_PRESETS),
    ],
    ids=["defenses", "models", "datasets", "threats"],
)
def test_the_catalog_names_what_can_be_built(names, table):
    assert set(names) == set(table)


def test_the_catalog_names_the_presets_of_a_recipe():
    literal = Recipe.model_fields["preset"].annotation
    assert set(catalog.PRESETS) == set(literal.__args__)


@pytest.mark.parametrize("table", catalog.__all__)
def test_each_line_of_the_catalog_is_one_short_sentence(table):
    for name, line in getattr(catalog, table).items():
        assert name == name.lower()
        assert line
        assert "\n" not in line
        assert len(f"{name}  {line}") <= 120


@pytest.mark.parametrize("name", list(catalog.THREATS))
def test_the_radii_that_the_catalog_tells_are_those_of_the_preset(name):
    line = catalog.THREATS[name].split(" (")[0]
    told = {}
    for part in line.split(", "):
        norm, number = part.split()
        numerator, _, denominator = number.partition("/")
        told[norm] = float(numerator) / float(denominator or 1)
    assert told == {norm: threat.radius for norm, threat in threats_for(name).items()}
