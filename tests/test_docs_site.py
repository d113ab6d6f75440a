"""The site is built strictly, and nothing on it is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
LIBRARIES = {"https://unpkg.com/mermaid", "https://unpkg.com/resize-observer-polyfill"}
"""What the theme's script would fetch for diagrams, and in browsers from before 2020."""


class Page(HTMLParser):
    """The anchors, links and loaded addresses of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if values.get("rel") == "canonical":
            return
        self.loaded += [value for name, value in values.items() if (tag, name) in LOADED]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for module in ("mkdocs", "material"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'multirobust[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    finished = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_page_of_the_documentation_is_a_page_of_the_site(pages, site):
    sources = (ROOT / "docs").rglob("*.md")
    wanted = {path.relative_to(ROOT / "docs") for path in sources} - {Path("README.md")}
    for path in wanted:
        name = "index.html" if path.name == "README.md" else f"{path.stem}.html"
        assert site / path.parent / name in pages


def test_nothing_is_loaded_from_elsewhere(pages, site):
    loaded = {address for page in pages.values() for address in page.loaded}
    assert any(address.endswith(".css") for address in loaded)
    assert [address for address in loaded if urlsplit(address).netloc] == []
    for style in site.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)'\"]*", style.read_text())
        assert outside == [], style
    texts = [script.read_text("utf-8") for script in site.rglob("bundle*.js")]
    libraries = {found for text in texts for found in re.findall(r"https://unpkg[\w./-]*", text)}
    assert libraries <= LIBRARIES


def test_no_page_asks_for_a_diagram(pages):
    assert not any("mermaid" in path.read_text("utf-8") for path in pages)


def test_every_internal_link_leads_to_a_page_and_an_anchor(pages, site):
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path.name, link)
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (path.name, link)
