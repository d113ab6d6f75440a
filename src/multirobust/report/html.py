"""The report: one HTML file that needs nothing else, to read on any screen."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from multirobust.errors import InputError, RunError, lookup_error
from multirobust.files import atomic_write
from multirobust.report.figures import Figure
from multirobust.report.gallery import GalleryRow, png_address
from multirobust.report.headline import SYMBOLS, findings
from multirobust.report.tables import RunResult, comparison, duration

__all__ = ["render_page", "write_report"]

TITLE = "Who withstands what, at what cost"


def write_report(
    results: Sequence[RunResult],
    path: Path,
    *,
    figures: Sequence[Figure] = (),
    gallery: Mapping[str, Sequence[GalleryRow]] | None = None,
    title: str = TITLE,
    notes: Sequence[str] = (),
) -> None:
    """Write the report as one self-contained HTML file, whole or not at all.

    Args:
        results: The runs to compare.
        path: File to write; its folder is created if missing.
        figures: Drawn figures, from `standard_figures`.
        gallery: For each run by name, a few images with their attacked versions.
        title: Headline of the page.
        notes: Sentences to show under the headline, such as what the data cannot tell.

    Raises:
        InputError: If the results do not fit together (see `comparison`) or the gallery names a
            run that is not among them.
        RunError: If the file cannot be written.
    """
    page = render_page(results, figures=figures, gallery=gallery, title=title, notes=notes)
    if path.is_dir():
        raise RunError(f"{path}: is a folder. Give the name of a file, such as report.html.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{path.parent}: cannot be used as a folder: {error.strerror}. Choose another."
        ) from error
    atomic_write(path, page.encode())


def render_page(
    results: Sequence[RunResult],
    *,
    figures: Sequence[Figure] = (),
    gallery: Mapping[str, Sequence[GalleryRow]] | None = None,
    title: str = TITLE,
    notes: Sequence[str] = (),
) -> str:
    """Return the page that `write_report` writes; the same arguments give the same text."""
    import jinja2

    names = list(dict.fromkeys(result.name for result in results))
    for name in gallery or ():
        if name not in names:
            raise lookup_error("run in the gallery", name, names)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"png": png_address, "svg": _svg_address}
    source = resources.files("multirobust.report").joinpath("template.html").read_text("utf-8")
    return environment.from_string(source).render(
        title=title,
        notes=notes,
        findings=findings(results),
        table=comparison(results),
        symbols={heading: SYMBOLS[key] for heading, key in _HEADINGS.items()},
        figures=figures,
        gallery={name: gallery[name] for name in names if name in gallery} if gallery else {},
        attacks=list(_attacks(results)),
        runs=[(f"{run.name}, seed {run.seed}", list(_facts(run))) for run in results],
    )


_HEADINGS = {"l∞": "linf", "l1": "l1", "l2": "l2"}


class _Attack(NamedTuple):
    name: str
    threat: str
    radius: str
    settings: str
    passes: str


def _attacks(results: Sequence[RunResult]) -> Iterator[_Attack]:
    """Yield every attack once, whatever number of runs it was used on."""
    seen = set()
    for column in (column for run in results for column in run.outcomes.columns):
        attack = _Attack(
            column.name,
            SYMBOLS.get(column.threat, column.threat),
            f"{column.radius:.4g} = {255 * column.radius:.4g}/255",
            column.settings or "not recorded",
            f"{column.forwards:.4g} forward, {column.backwards:.4g} backward",
        )
        if attack[:-1] not in seen:
            seen.add(attack[:-1])
            yield attack


def _facts(run: RunResult) -> Iterator[tuple[str, str]]:
    """Yield what is known about a run, as pairs of a name and a value."""
    yield "images", f"{len(run.outcomes):,}"
    yield "training device", run.device
    if run.training_seconds is not None:
        yield "training time", duration(run.training_seconds)
    if run.forwards is not None and run.backwards is not None:
        yield "training passes", f"{run.forwards:,.0f} forward, {run.backwards:,.0f} backward"
    attacking = sum(column.seconds for column in run.outcomes.columns)
    if attacking:
        yield "attack time", duration(attacking)
    yield from _flat("", run.outcomes.manifest)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, (list, tuple)) and not any(
        isinstance(v, (Mapping, list)) for v in value
    ):
        yield prefix, ", ".join(map(str, value))
    else:
        yield prefix, str(value)


def _svg_address(svg: str) -> str:
    """Return a data address that holds the drawing; as an image its styles stay its own."""
    if "<svg" not in svg:
        raise InputError(f"figures: svg must be an SVG document, got {svg[:40]!r}.")
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
