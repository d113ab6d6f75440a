"""What every drawing must be: valid SVG, the same every time, with words for who cannot see it."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """Return all texts that are drawn."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def description(svg: str) -> str:
    """Return what a screen reader says after the title."""
    return ElementTree.fromstring(svg).findtext(f"{SVG}desc") or ""


def check_drawing(draw: Callable[[], str]) -> str:
    """Return the drawing, once it is seen to be readable, described, white and repeatable."""
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    svg = draw()
    assert svg == draw()
    assert dict(mpl.rcParams) == before
    assert "<dc:date>" not in svg
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    named = {element.get("id"): element.text for element in root if element.get("id")}
    labels = (root.get("aria-labelledby") or "").split()
    assert len(labels) == 2
    assert all(named[label] for label in labels)
    assert "fill: #ffffff" in svg[: svg.index("</g>")], "no background of its own"
    return svg
