"""The sheet that figures are drawn on: SVG text with a title and a description of its own.

The same arrays give the same bytes. The sheet is white, so that a figure reads the same on a light
and on a dark page; a screen reader reads the title and the description instead of the drawing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final
from xml.sax.saxutils import escape

from multirobust.analysis.plots import STYLE, WIDTH, printable

__all__ = ["Sheet", "sheet"]


@final
@dataclass
class Sheet:
    """A matplotlib figure to draw on, and after the `with` block its SVG document.

    Args:
        figure: The figure.
        svg: Empty until the block ends.
    """

    figure: Any
    svg: str = ""


@contextlib.contextmanager
def sheet(width: float, height: float, *, title: str, description: str) -> Iterator[Sheet]:
    """Lend a figure, and turn it into SVG text when the block ends; global state stays as it was.

    Args:
        width: In inches; a page is 7.2 wide.
        height: In inches.
        title: What the figure shows, for screen readers and as a tool tip.
        description: Its numbers in words, for screen readers.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context(STYLE):
        # A name in a script that the measuring font lacks is still shown: the reader has fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(
            figsize=(max(width, WIDTH / 3), height), layout="constrained", facecolor="white"
        )
        FigureCanvasSVG(figure)
        lent = Sheet(figure)
        yield lent
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    lent.svg = _described(stream.getvalue(), printable(title), printable(description))


def _described(svg: str, title: str, description: str) -> str:
    """Return the document with title and description, which its root element refers to."""
    # The names hold a digest, so that several figures can stand in one page.
    key = hashlib.sha256(f"{title}\n{description}".encode()).hexdigest()[:10]
    start = svg.index("<svg ")
    end = svg.index(">", start)
    labels = f' role="img" aria-labelledby="title-{key} description-{key}"'
    inside = (
        f'\n <title id="title-{key}">{escape(title)}</title>'
        f'\n <desc id="description-{key}">{escape(description)}</desc>'
    )
    return svg[:end] + labels + ">" + inside + svg[end + 1 :]
