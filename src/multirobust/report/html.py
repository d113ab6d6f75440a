"""The report: one HTML file that needs nothing else, to read on any screen."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from multirobust.errors import InputError, RunError, lookup_error
from multirobust.files import atomic_write
from multirobust.report.breakdown import attack_table, breakdown
from multirobust.report.figures import Figure, Section
from multirobust.report.gallery import GalleryRow, png_address
from multirobust.report.headline import SYMBOLS, findings
from multirobust.report.protocol import attacks_of, facts_of
from multirobust.report.tables import RunResult, comparison

__all__ = ["render_page", "write_report"]

TITLE = "Who withstands what, at what cost"
FIRST, LAST = ("Comparison", "Each attack"), ("Gallery", "Protocol", "Runs")
"""The parts that the page itself has, before and after the sections that are given."""


def write_report(
    results: Sequence[RunResult],
    path: Path,
    *,
    figures: Sequence[Figure] = (),
    sections: Sequence[Section] = (),
    gallery: Mapping[str, Sequence[GalleryRow]] | None = None,
    title: str = TITLE,
    notes: Sequence[str] = (),
) -> None:
    """Write the report as one self-contained HTML file, whole or not at all.

    Args:
        results: The runs to compare.
        path: File to write; its folder is created if missing.
        figures: Drawn figures of the comparison, from `standard_figures`.
        sections: Other parts, in their order, between the attacks and the gallery.
        gallery: For each run by name, a few images with their attacked versions.
        title: Headline of the page.
        notes: Sentences to show under the headline, such as what the data cannot tell.

    Raises:
        InputError: If the results do not fit together (see `comparison`), the gallery names a
            run that is not among them, or two sections or figures have one title.
        RunError: If the file cannot be written.
    """
    page = render_page(
        results, figures=figures, sections=sections, gallery=gallery, title=title, notes=notes
    )
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
    sections: Sequence[Section] = (),
    gallery: Mapping[str, Sequence[GalleryRow]] | None = None,
    title: str = TITLE,
    notes: Sequence[str] = (),
) -> str:
    """Return the page that `write_report` writes; the same arguments give the same text."""
    import jinja2
    from markupsafe import Markup

    names = list(dict.fromkeys(result.name for result in results))
    for name in gallery or ():
        if name not in names:
            raise lookup_error("run in the gallery", name, names)
    _check_titles(figures, sections)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"png": png_address, "svg": _svg_address, "slug": _slug}
    style, script = _source("page.css"), _source("page.js")
    attacked = [result for result in results if result.outcomes.columns]
    absent = {"Each attack": not attacked, "Gallery": not gallery}
    parts = [*FIRST, *(section.title for section in sections), *LAST]
    return environment.from_string(_source("template.html")).render(
        policy=Markup(_policy(style, script)),
        style=Markup(style),
        script=Markup(script),
        parts=[part for part in parts if not absent.get(part)],
        title=title,
        notes=notes,
        findings=findings(results),
        table=comparison(results),
        attack_table=attack_table(results) if attacked else None,
        breakdowns=[(_label(run), breakdown(run.outcomes)) for run in attacked],
        symbols=SYMBOLS | {"l∞": SYMBOLS["linf"]},
        figures=figures,
        sections=sections,
        gallery={name: gallery[name] for name in names if name in gallery} if gallery else {},
        attacks=list(attacks_of(results)),
        runs=[(_label(run), list(facts_of(run))) for run in results],
    )


def _label(run: RunResult) -> str:
    return f"{run.name}, seed {run.seed}"


def _source(name: str) -> str:
    return resources.files("multirobust.report").joinpath(name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Return the page's rule for itself: its own style and script, images inside it, no more."""
    hashes = (base64.b64encode(hashlib.sha256(t.encode()).digest()) for t in (style, script))
    styles, scripts = (f"'sha256-{digest.decode()}'" for digest in hashes)
    rules = ("default-src 'none'", f"script-src {scripts}", f"style-src {styles}", "img-src data:")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _check_titles(figures: Sequence[Figure], sections: Sequence[Section]) -> None:
    """Titles become addresses within the page."""
    titles = ["main", "contents", "said", *FIRST, *LAST, *(figure.title for figure in figures)]
    for section in sections:
        titles += [section.title, *(figure.title for figure in section.figures)]
    slugs = [_slug(title) for title in titles]
    twice = [title for title in titles if slugs.count(_slug(title)) > 1]
    if twice:
        raise InputError(
            f"sections: titles must differ within the page in letters or digits, got "
            f"{twice[-1]!r} twice; rename one."
        )


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-") or "untitled"


def _svg_address(svg: str) -> str:
    """Return a data address that holds the drawing; as an image its styles stay its own."""
    if "<svg" not in svg:
        raise InputError(f"figures: svg must be an SVG document, got {svg[:40]!r}.")
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
