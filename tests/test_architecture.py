"""The shape of the source: floors, sizes, names and docstrings."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter import cli as import_linter

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src"
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST_MODULE, LONGEST_FUNCTION = 300, 40


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(params=MODULES, ids=name_of)
def module(request) -> Path:
    return request.param


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def public(nodes: list[ast.stmt]) -> list[ast.FunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n for n in nodes if isinstance(n, kinds) and not n.name.startswith("_")]


def test_each_floor_imports_only_from_floors_below(capsys):
    code = import_linter.lint_imports(
        config_filename=str(REPOSITORY / ".importlinter"), no_cache=True, no_logo=True
    )
    assert code == 0, capsys.readouterr().out


def test_no_module_and_no_function_is_long(module):
    text = module.read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    for function in functions(ast.parse(text)):
        first = function.body[1 if ast.get_docstring(function) else 0 :]
        lines = first[-1].end_lineno - first[0].lineno + 1 if first else 0
        assert lines <= LONGEST_FUNCTION, function.name


def test_every_public_name_is_exported_and_every_export_is_there(module):
    tree = ast.parse(module.read_text("utf-8"))
    # What a decorator registers, such as a command, is not imported by its name.
    defined = {
        node.name
        for node in public(tree.body)
        if not any(isinstance(decorator, ast.Call) for decorator in node.decorator_list)
        or isinstance(node, ast.ClassDef)
    }
    loaded = importlib.import_module(name_of(module))
    exported = getattr(loaded, "__all__", [])
    assert defined <= set(exported)
    assert len(set(exported)) == len(exported)
    for name in exported:
        assert getattr(loaded, name) is not None


def test_everything_public_has_a_docstring(module):
    tree = ast.parse(module.read_text("utf-8"))
    if module.stat().st_size:
        assert ast.get_docstring(tree)
    for node in public(tree.body):
        assert ast.get_docstring(node), node.name
        methods = public(node.body) if isinstance(node, ast.ClassDef) else []
        for method in methods:
            assert ast.get_docstring(method), f"{node.name}.{method.name}"


def test_exports_are_sorted():
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    finished = subprocess.run(
        [ruff, "check", "--isolated", "--preview", "--select", "RUF022", "--no-cache", str(SOURCE)],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout
