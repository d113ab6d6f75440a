"""The Python and the commands of the pages on starting and extending are run as they stand."""

from __future__ import annotations

import gzip
import re
import shlex
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tiny_runs import SETTINGS

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```python(?: title=\"(.+?)\")?\n(.*?)^```", re.M | re.S)


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """The Python of a page: the file that a block is to be saved as, or nothing, and its text."""
    return BLOCK.findall(page(name))


def commands(name: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^    multirobust (.*)$", page(name), re.M)]


def run_blocks(name: str, monkeypatch) -> None:
    """Run the blocks of a page one after the other, as one module."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for number, (_, text) in enumerate(blocks(name)):
        # Line numbers of an error are those of the page.
        lines = page(name)[: page(name).index(text)].count("\n")
        exec(compile("\n" * lines + text, f"{name}, block {number + 1}", "exec"), vars(module))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch, as_installed):
    monkeypatch.chdir(tmp_path)


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.mark.parametrize("name", ["how-to-add-an-attack.md", "how-to-add-a-defense.md"])
def test_the_code_of_the_page_runs(name, capsys, monkeypatch):
    assert len(blocks(name)) == 3
    run_blocks(name, monkeypatch)
    assert capsys.readouterr().out


def test_the_reader_of_the_page_reads_files_in_the_published_form(capsys, monkeypatch):
    folder, random = Path("fashion"), np.random.default_rng(0)
    folder.mkdir()
    for part, count in (("train", 120), ("t10k", 40)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    run_blocks("how-to-add-a-data-set.md", monkeypatch)
    assert "8 images" in capsys.readouterr().out


def test_every_command_and_block_of_the_start_runs_in_its_order(multirobust, capsys):
    for file, text in blocks("start.md"):
        if file:
            Path(file).write_text(text, "utf-8")
    for words in commands("start.md"):
        small = SETTINGS if words[0] == "train" else ()
        answer = multirobust(*words, *small)
        assert answer.code == 0, (words, answer.err)
    names = {words[0] for words in commands("start.md")}
    assert {"train", "evaluate", "compare", "breakdown", "report", "export"} <= names
    for file, text in blocks("start.md"):
        if not file:
            exec(compile(text, "start.md", "exec"), {})
    assert "[" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["start.md", "models.md"])
def test_every_command_of_the_page_parses(name):
    import typer

    from multirobust.cli import app

    known = typer.main.get_command(app).commands
    assert commands(name)
    for words in commands(name):
        known[words[0]].make_context(words[0], words[1:], resilient_parsing=False)


def test_the_code_of_the_start_page_of_the_site_is_that_of_the_readme():
    ours = [text for _, text in blocks("index.md")]
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    assert ours
    assert all(text in readme for text in ours)
