"""What the command line chooses of a table, figure or study, and whether it can be made so."""

from __future__ import annotations

from multirobust.errors import InputError, lookup_error
from multirobust.recipes.study import Study

__all__ = ["check_choice"]


def check_choice(study: Study) -> None:
    """Make sure that there are rows to make, and that they can be made as the study says.

    Raises:
        InputError: If a row is unknown or none is left, or if radii or passes are chosen for what
            is not made at several.
    """
    made = study.reproduction
    for name in study.names:
        if name not in {row.name for row in made.rows}:
            raise lookup_error(f"row of {made.name}", name, [row.name for row in made.rows])
    if not study.rows:
        names = sorted({row.defense for row in made.rows})
        raise InputError(
            f"--defense: {', '.join(study.defenses)} is no row of {made.name}, which has "
            f"{', '.join(names)}; name one of these."
        )
    if study.split != "test" and made.kind != "at_equal_passes":
        raise InputError(
            f"--split: {made.name} is made from the test images, got {study.split!r}; drop it."
        )
    if study.threats is not None:
        _check_threats(study, study.threats)
    if made.kind == "at_equal_passes":
        _check_passes(study)
    elif study.passes is not None:
        raise InputError(
            f"--passes: {made.name} trains epochs, got {study.passes:g} passes; drop it, or set "
            "training.epochs."
        )


def _check_threats(study: Study, threats: str) -> None:
    known = study.reproduction.threats
    if not known:
        raise InputError(
            f"--threats: {study.reproduction.name} is made at the radii of its data only, got "
            f"{threats!r}; drop it."
        )
    if threats not in known:
        raise lookup_error(f"radii of {study.reproduction.name}", threats, known)
    if study.scale.data == "digits":
        raise InputError(
            f"--threats: the digits have radii of their own, got {threats!r}, which are of larger "
            "images; drop it, or choose other --data."
        )


def _check_passes(study: Study) -> None:
    passes = study.passes
    if passes is not None and not 0 < passes < float("inf"):
        raise InputError(f"--passes: must be a finite number above 0, got {passes!r}.")
    if any(text.partition("=")[0].strip() == "training.passes" for text in study.overrides):
        raise InputError(
            f"--set training.passes: some rows of {study.reproduction.name} train epochs, which "
            "it would change too; use --passes."
        )
