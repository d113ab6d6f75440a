"""Write the tables of the README and of docs/ anew from the files in results/ that comments name.

    python benchmarks/readme_tables.py [--check]

A comment says what stands between it and `<!-- end -->`:

- `<!-- table: FILE -->`: the comparison of the runs of a record (`multirobust compare --record`).
- `<!-- breakdown: FILE -->`: what each attack of the one run of a record breaks and costs.
- `<!-- rows: FILE COLUMN, COLUMN as HEADING, ... -->`: these entries of a benchmark's "rows", or of
  another of its lists, FILE#LIST.
- `<!-- product: FILE.md -->`: what `multirobust reproduce` wrote, without its heading.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from multirobust.report import breakdown, comparison, markdown, read_record

ROOT = Path(__file__).resolve().parents[1]
KINDS = "table|breakdown|rows|product"
TABLE = re.compile(rf"(<!-- ({KINDS}): (\S+) ?(.*?) ?-->\n).*?(<!-- end -->)", re.S)
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def with_tables(text: str) -> str:
    """Return a page's text with every table made from its file."""

    def table(match: re.Match[str]) -> str:
        opening, kind, file, columns, closing = match.groups()
        file, _, key = file.partition("#")
        path = ROOT / file
        if kind == "rows":
            body = rows(json.loads(path.read_text("utf-8"))[key or "rows"], columns)
        elif kind == "product":
            body = product(path)
        elif kind == "breakdown":
            (run,) = read_record(path)
            body = markdown(breakdown(run.outcomes))
        else:
            body = markdown(comparison(read_record(path)))
        return f"{opening}\n{body}\n{closing}"

    return TABLE.sub(table, text)


def product(path: Path) -> str:
    """Return a page of `multirobust reproduce` as a part of a page of docs/."""
    text = path.read_text("utf-8").partition("\n")[2].lstrip("\n")
    folder = path.parent.relative_to(ROOT).as_posix()
    return re.sub(r"\]\(([\w.-]+\.svg)\)", rf"](../{folder}/\1)", text)


def rows(found: list[dict[str, Any]], columns: str) -> str:
    """Return a Markdown table of chosen entries."""
    chosen = [part.strip().split(" as ") for part in columns.split(",")]
    lines = [[parts[-1] for parts in chosen], ["---", *["---:"] * (len(chosen) - 1)]]
    lines += [[shown(row.get(parts[0])) for parts in chosen] for row in found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def shown(value: Any) -> str:
    """Return an entry as text: numbers to three figures."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value) if isinstance(value, (bool, str)) else f"{value:,}"


def main(arguments: list[str] | None = None) -> int:
    """Write, or with --check only compare; return 1 if a page was stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if stale")
    options = parser.parse_args(arguments)
    stale = False
    for page in PAGES:
        before = page.read_text("utf-8")
        after = with_tables(before)
        stale |= before != after
        if not options.check:
            page.write_text(after, "utf-8")
    return int(options.check and stale)


if __name__ == "__main__":
    sys.exit(main())
