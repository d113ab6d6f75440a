"""Write the tables of the README anew from the files in results/ that its comments name.

python benchmarks/readme_tables.py [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from multirobust.report import comparison, markdown, read_record

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.S)


def with_tables(text: str) -> str:
    """Return the README's text with every table made from its file."""

    def table(match: re.Match[str]) -> str:
        runs = read_record(ROOT / match[2])
        return f"{match[1]}\n{markdown(comparison(runs))}\n{match[3]}"

    return TABLE.sub(table, text)


def main(arguments: list[str] | None = None) -> int:
    """Write, or with --check only compare; return 1 if the README was stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if stale")
    options = parser.parse_args(arguments)
    readme = ROOT / "README.md"
    before = readme.read_text("utf-8")
    after = with_tables(before)
    if not options.check:
        readme.write_text(after, "utf-8")
    return int(options.check and before != after)


if __name__ == "__main__":
    sys.exit(main())
