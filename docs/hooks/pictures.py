"""Lets pages show the pictures of results/, which lie outside of docs/, on the site too."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FOLDER = "results/reproduction"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the drawings under the path that they have in the repository."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / FOLDER).rglob("*.svg")):
        name = path.relative_to(root).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point at them from the pages, whose links are those of the repository."""
    return markdown.replace(f"](../{FOLDER}/", f"]({FOLDER}/")
