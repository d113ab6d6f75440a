"""A comparison table as plain text, Markdown or LaTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from multirobust.report.tables import Cell, Table

__all__ = ["latex", "markdown", "markdown_text", "text"]


def text(table: Table, *, details: bool = True) -> str:
    """Return aligned plain text: the best of a column as *43.4*, the second-best as _42.1_.

    Args:
        table: What to show.
        details: Whether to show intervals and deviations; without them the table is
            less than 80 characters wide.
    """
    marks = {0: " {} ", 1: "*{}*", 2: "_{}_"}
    body = [[_plain(row.name) for row in table.rows]]
    headings = [table.corner]
    for i, column in enumerate(table.columns):
        cells = [row.cells[i] for row in table.rows]
        numbers = _align([marks[cell.rank].format(cell.text) for cell in cells], ">")
        doubts = _align([cell.detail if details else "" for cell in cells], "<")
        body.append([f"{n} {d}".rstrip() for n, d in zip(numbers, doubts, strict=True)])
        headings.append(f" {column.heading}")
    padded = [_align([h, *cells], "<") for h, cells in zip(headings, body, strict=True)]
    lines = ["  ".join(parts).rstrip() for parts in zip(*padded, strict=True)]
    lines.insert(1, "-" * max(len(line) for line in lines))
    notes = list(table.notes)
    if any(cell.rank for row in table.rows for cell in row.cells):
        notes.insert(0, "*best*, _second-best_.")
    return "\n".join([*lines, "", *notes]) + "\n"


def markdown(table: Table) -> str:
    """Return a GitHub-flavored Markdown table: best in bold, second-best underlined."""
    marks = {0: "{}", 1: "**{}**", 2: "<u>{}</u>"}
    names = {"l∞": "ℓ<sub>∞</sub>", "l1": "ℓ<sub>1</sub>", "l2": "ℓ<sub>2</sub>"}
    headings = [
        names.get(column.heading, markdown_text(column.heading)) for column in table.columns
    ]
    lines = [[table.corner, *headings], ["---", *["---:"] * len(headings)]]
    for row in table.rows:
        cells = [
            f"{marks[cell.rank].format(cell.text)} {cell.detail}".strip() for cell in row.cells
        ]
        lines.append([markdown_text(row.name), *cells])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([body, *map(markdown_text, table.notes)]) + "\n"


def latex(table: Table) -> str:
    r"""Return a LaTeX tabular; the document needs \usepackage{booktabs}."""
    names = {
        "clean": r"$\mathrm{Acc}_\mathrm{clean}$",
        "linf": r"$\ell_\infty$",
        "l1": r"$\ell_1$",
        "l2": r"$\ell_2$",
        "union": r"$\mathrm{Acc}_\mathrm{adv}^\mathrm{union}$",
        "avg": r"$\mathrm{Acc}_\mathrm{adv}^\mathrm{avg}$",
    }
    headings = [names.get(column.key, _latex(column.heading)) for column in table.columns]
    lines = [
        *(f"% {_plain(note)}" for note in table.notes),
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        rf"{_latex(table.corner.capitalize())} & {' & '.join(headings)} \\",
        r"\midrule",
        *(
            rf"{_latex(row.name)} & {' & '.join(_latex_cell(cell) for cell in row.cells)} \\"
            for row in table.rows
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    marks = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
    number = marks[cell.rank].format(_latex(cell.text))
    if cell.detail.startswith("±"):
        return rf"{number} {{\scriptsize $\pm$ {_latex(cell.detail[1:].strip())}}}"
    return rf"{number} {{\scriptsize {_latex(cell.detail)}}}" if cell.detail else number


def _align(parts: Sequence[str], side: str) -> list[str]:
    width = max(map(len, parts), default=0)
    return [f"{part:{side}{width}}" for part in parts]


def _plain(name: str) -> str:
    """Keep a name on one line: no line breaks, no terminal control codes."""
    kept = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in name)
    return " ".join("".join(kept).split())


def markdown_text(name: str) -> str:
    """Return a text on one line in which Markdown and HTML have no meaning."""
    escaped = re.sub(r"([\\|*`\[\]~])", r"\\\1", _plain(name))
    escaped = re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "∞": r"$\infty$",
    "±": r"$\pm$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _latex(name: str) -> str:
    return "".join(_LATEX.get(c, c) for c in _plain(name))
