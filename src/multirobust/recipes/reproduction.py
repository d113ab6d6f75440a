"""What a table or figure is made from: a TOML file each, in `paper/`, or for ours in `studies/`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from multirobust import catalog
from multirobust.config.section import Count, NonNegative, Positive, Section
from multirobust.errors import InputError, lookup_error

__all__ = ["Published", "Reproduction", "RowOf", "load_reproduction"]

Kind = Literal[
    "comparison",
    "attacks",
    "levels",
    "against_beta",
    "surfaces",
    "boundary",
    "noise",
    "at_equal_passes",
]


class RowOf(Section):
    """One method.

    Args:
        name: How it is called here; the name of its defense unless one defense stands twice.
        defense: A name of `multirobust list defenses`.
        changes: Overrides of the recipe, for this row alone.
        on_digits: Further ones at the scale of the digits.
        unlabeled: Whether it also trains on pseudo-labeled images.
        init_from: Row that is trained first and whose model, of the same seed, it starts from.
        family: For the kind "at_equal_passes": the rows that it stands with.
        length: For the same: what ends its training, the "passes" of the study or the "epochs" of
            the scale.
        point: For the same: what it is called where the figure sets the union against the passes;
            empty leaves it out there.
    """

    name: str
    defense: str
    changes: tuple[str, ...] = ()
    on_digits: tuple[str, ...] = ()
    unlabeled: bool = False
    init_from: str | None = None
    family: str = ""
    length: Literal["passes", "epochs"] = "passes"
    point: str = ""

    @field_validator("defense")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in catalog.DEFENSES:
            raise ValueError(str(lookup_error("defense", value, catalog.DEFENSES)))
        return value


class Published(Section):
    """The paper's numbers on one data set, as printed.

    Args:
        columns: Keys of the columns, as in `report.comparison`.
        rows: For each row by its name, one text per column, such as "41.4±0.7"; "" for none.
    """

    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]

    @model_validator(mode="after")
    def _rectangular(self) -> Published:
        for name, cells in self.rows.items():
            if len(cells) != len(self.columns):
                raise ValueError(f"row {name!r} has {len(cells)} cells, not {len(self.columns)}")
        return self


class Reproduction(Section):
    """One table or figure.

    Args:
        name: As on the command line, such as "table-1".
        title: As a heading.
        kind: What is made of the evaluated models.
        rows: The methods, in the paper's order.
        suite: The suite that they are attacked with; None attacks nothing.
        severities: At the scale of the digits, levels of attacks that no norm measures; None takes
            those of the suite.
        columns: Which columns the table shows, by key without its level; None shows all.
        by: For the kind "levels": whether a column is an attack or a level.
        betas: For the kind "against_beta": weights of the consistency loss.
        classes: For the kind "boundary": the two classes, by data set.
        reference: For the kind "at_equal_passes": the row that all others are compared with.
        passes: For the same: the forward-backward passes an image, by scale or by data set.
        scales: What it changes in all rows, by scale or by data set.
        threats: Sets of radii that it is also made at, each with what it changes in all rows.
        labeled: How many labels are kept, by data set, where the other images are pseudo-labeled.
        published: The paper's numbers, by data set.
        reading: What to compare where the paper prints no numbers.
    """

    name: str
    title: str
    kind: Kind
    rows: Annotated[tuple[RowOf, ...], Field(min_length=1)]
    suite: str | None = "fast"
    severities: tuple[Count, ...] | None = None
    columns: tuple[str, ...] | None = None
    by: Literal["attack", "level"] = "attack"
    betas: tuple[NonNegative, ...] = ()
    classes: Mapping[str, tuple[int, int]] = Field(default_factory=dict)
    reference: str | None = None
    passes: Mapping[str, Positive] = Field(default_factory=dict)
    scales: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    threats: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    labeled: Mapping[str, Count] = Field(default_factory=dict)
    published: Mapping[str, Published] = Field(default_factory=dict)
    reading: str = ""

    @model_validator(mode="before")
    @classmethod
    def _rows_by_name(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        rows = [
            {"name": row, "defense": row} if isinstance(row, str) else row
            for row in fields.get("rows", ())
        ]
        return {**fields, "rows": rows}

    @model_validator(mode="after")
    def _consistent(self) -> Reproduction:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"rows: each name may stand only once, got {names}")
        if self.suite is not None and self.suite not in catalog.SUITES:
            raise ValueError(str(lookup_error("suite", self.suite, catalog.SUITES)))
        if self.reference not in (None, *names) or (
            self.kind == "at_equal_passes" and self.reference is None
        ):
            raise ValueError(f"reference: {lookup_error('row', str(self.reference), names)}")
        for preset in self.threats:
            if preset not in catalog.THREATS:
                raise ValueError(str(lookup_error("threat preset", preset, catalog.THREATS)))
        for row in self.rows:
            self._check_source(row)
        for data, published in self.published.items():
            for name in published.rows:
                if name not in names:
                    raise ValueError(f"published.{data}: {lookup_error('row', name, names)}")
        return self

    def _check_source(self, row: RowOf) -> None:
        """Raise ValueError unless a row starts from nothing, or in the end from such a row."""
        rows, passed = {row.name: row for row in self.rows}, [row.name]
        while (source := rows[passed[-1]].init_from) is not None:
            if source not in rows:
                raise ValueError(
                    f"row {passed[-1]!r}: init_from: {lookup_error('row', source, rows)}"
                )
            if rows[source].unlabeled != row.unlabeled:
                raise ValueError(
                    f"row {row.name!r}: init_from: unlabeled must be that of {source!r}, which "
                    f"trains {'on' if rows[source].unlabeled else 'without'} pseudo-labeled images"
                )
            passed.append(source)
            if passed.count(source) > 1:
                raise ValueError(f"init_from: rows start from each other: {' from '.join(passed)}")


def load_reproduction(name: str) -> Reproduction:
    """Return what a table or figure is made from.

    Raises:
        InputError: If there is no such table, figure or study.
    """
    if name not in catalog.REPRODUCTIONS:
        raise lookup_error("table or figure", name, catalog.REPRODUCTIONS)
    fields = tomllib.loads(_file(name).read_text("utf-8"))
    try:
        return Reproduction.model_validate({"name": name, **fields})
    except ValidationError as error:
        raise InputError(
            f"Recipe {name!r} is damaged: {error}; install the package anew."
        ) from None


def _file(name: str) -> Any:
    recipes = files("multirobust") / "recipes"
    own = recipes / "studies" / f"{name}.toml"
    return own if own.is_file() else recipes / "paper" / f"{name}.toml"
