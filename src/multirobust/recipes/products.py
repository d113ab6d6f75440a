"""What a reproduction ends in: a table, a figure, and the facts that both come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from multirobust.files import atomic_write
from multirobust.report import RunResult, Table, markdown, text, write_record

__all__ = ["Product"]


@final
@dataclass(frozen=True, kw_only=True)
class Product:
    """A table or figure of the paper, made anew.

    Args:
        title: Its heading.
        table: Our numbers, the paper's beside them where it prints any.
        results: The evaluated runs behind it; empty where nothing was attacked.
        svg: The drawing, for a figure.
        facts: What the drawing shows, as plain values.
        sentences: How ours compare with the paper's.
    """

    title: str
    table: Table
    results: Sequence[RunResult] = ()
    svg: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return everything that can be printed."""
        return "\n".join([self.title, "", text(self.table).rstrip("\n"), *self.sentences])

    def page(self, name: str) -> str:
        """Return everything as Markdown, with a link to the drawing `<name>.svg`."""
        image = f"![{self.title}]({name}.svg)\n\n" if self.svg else ""
        notes = "".join(f"\n{sentence}\n" for sentence in self.sentences)
        return f"# {self.title}\n\n{image}{markdown(self.table)}{notes}"

    def write(self, folder: Path, name: str, *, command: str = "") -> list[Path]:
        """Write `<name>.md`, `<name>.json` and, for a figure, `<name>.svg`, each whole or not.

        Raises:
            RunError: If a file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.md", folder / f"{name}.json"]
        atomic_write(paths[0], self.page(name).encode())
        if self.facts:
            content = {"command": command, "title": self.title, **self.facts}
            atomic_write(
                paths[1], (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
            )
        else:
            write_record(self.results, paths[1], command=command)
        if self.svg:
            paths.append(folder / f"{name}.svg")
            atomic_write(paths[-1], self.svg.encode())
        return paths
