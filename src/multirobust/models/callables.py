"""A model by the name of a Python function, in a module or a file."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from multirobust.errors import InputError, suggestion

__all__ = ["call_by_name", "checked_model"]

SHOWN = 8
FORM = "package.module:function or path/to/file.py:function"


def call_by_name(spec: str, options: Mapping[str, Any]) -> nn.Module:
    """Import what is left of the colon, and call what is right of it.

    The current folder, or that of the file, comes first on `sys.path` meanwhile, and not after.

    Args:
        spec: `package.module:function` or `path/to/file.py:function`. In place of a function there
            may be a class, or an `nn.Module`, which is taken as it is.
        options: Keyword arguments of the call.

    Raises:
        InputError: If the spec, the module, the name or an argument is wrong, if the code raises
            (the message says where), or if it returns no `nn.Module`.
    """
    place, _, attribute = spec.rpartition(":")
    from_file = place.endswith(".py")
    dotted = attribute if from_file else f"{place}.{attribute}"
    if not all(part.isidentifier() for part in dotted.split(".")):
        raise InputError(f"model {spec!r} is in no known form; write it as {FORM}.")
    folder = Path(place).expanduser().resolve().parent if from_file else Path.cwd()
    with _importable(folder):
        target: Any = _module_of_file(place, spec) if from_file else _module(place, spec)
        for name in attribute.split("."):
            target = _member(target, name, spec)
        if isinstance(target, nn.Module) and not options:
            return target
        _check_call(target, options, spec)
        with _blaming(spec):
            model = target(**options)
    return checked_model(model, spec)


def checked_model(model: object, spec: str) -> nn.Module:
    """Return the model; raise an InputError if it is no `nn.Module`."""
    if isinstance(model, nn.Module):
        return model
    found = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    raise InputError(
        f"model {spec!r} must return a torch.nn.Module, got {found}; return the classifier itself, "
        "which maps images in [0, 1] to logits."
    )


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _blaming(spec: str) -> Iterator[None]:
    """Turn what the user's code raises into one error that says where."""
    try:
        yield
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = f" Install what provides {error.name!r}."
        raise InputError(
            f"model {spec!r} raised {type(error).__name__} in {_place(error)}: {error}.{hint}"
        ) from error


def _place(error: BaseException) -> str:
    """Say where an error arose: the innermost line of the user's own code, if there is one."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    foreign = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))
    own = [
        frame
        for frame in frames
        if os.path.isabs(frame.filename)
        and frame.filename != __file__
        and not frame.filename.startswith(foreign)
    ]
    last = (own or frames)[-1]
    return f"{last.filename}, line {last.lineno}"


def _module(place: str, spec: str) -> ModuleType:
    with _blaming(spec):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            absent = error.name
            if not f"{place}.".startswith(f"{absent}."):
                raise
    parents = place.split(".")[:-1]
    beside = [".".join([*parents, path.stem]) for path in Path(*parents).glob("*.py")]
    raise InputError(
        f"model {spec!r}: there is no module {absent!r}.{suggestion(place, beside)} It is looked "
        f"for in the current folder, {Path.cwd()}, and among what is installed; or give "
        "path/to/file.py:function."
    )


def _module_of_file(place: str, spec: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        beside = [str(Path(place).with_name(other.name)) for other in path.parent.glob("*.py")]
        raise InputError(
            f"model {spec!r}: there is no file {place!r}.{suggestion(place, beside)} It is looked "
            f"for from the current folder, {Path.cwd()}."
        )
    name = f"multirobust_model_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # Dataclasses and pickling look a module up by its name.
    sys.modules[name] = module
    try:
        with _blaming(spec):
            found.loader.exec_module(module)
    except InputError:
        del sys.modules[name]
        raise
    return module


def _member(holder: Any, name: str, spec: str) -> Any:
    with _blaming(spec):
        if hasattr(holder, name):
            return getattr(holder, name)
        known = sorted(n for n in dir(holder) if not n.startswith("_"))
    inside = getattr(holder, "__dict__", {})
    own = [n for n in known if getattr(inside.get(n), "__module__", None) == _name(holder)]
    names = own or known
    shown = ", ".join(names[:SHOWN]) + (" and more" if len(names) > SHOWN else "")
    raise InputError(
        f"model {spec!r}: {_name(holder)} has no {name!r}.{suggestion(name, names)} It has "
        f"{shown or 'nothing'}."
    )


def _name(holder: Any) -> str:
    return str(getattr(holder, "__name__", type(holder).__name__))


def _check_call(target: Any, options: Mapping[str, Any], spec: str) -> None:
    if isinstance(target, nn.Module) or not callable(target):
        kind = "a finished module" if isinstance(target, nn.Module) else "not callable"
        way = "leave out the options (--model-arg)" if kind[0] == "a" else "name a function"
        raise InputError(f"model {spec!r} is {kind} ({type(target).__name__}); {way}.")
    try:
        signature = inspect.signature(target)
    except ValueError:
        return  # some built-ins have none
    try:
        signature.bind(**options)
    except TypeError as error:
        given = ", ".join(options) or "no arguments"
        raise InputError(
            f"model {spec!r} cannot be called with {given}: {error}. "
            f"Its signature is {signature}; give arguments as options (--model-arg name=value)."
        ) from None
