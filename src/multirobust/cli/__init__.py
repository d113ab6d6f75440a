"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

from multirobust.cli import (
    curves,
    engines,
    evaluating,
    exporting,
    pseudo_labeling,
    reading,
    reproducing,
    sweeping,
    training,
)
from multirobust.cli.common import app, tell
from multirobust.errors import InputError, Interrupted, MultirobustError

__all__ = [
    "app",
    "curves",
    "engines",
    "evaluating",
    "exporting",
    "main",
    "pseudo_labeling",
    "reading",
    "reproducing",
    "sweeping",
    "training",
]

_COMMANDS = {
    "list": training.list_names,
    "show": training.show,
    "train": training.train,
    "evaluate": evaluating.evaluate,
    "merge": evaluating.merge,
    "compare": reading.compare,
    "breakdown": reading.breakdown,
    "curve": curves.curve,
    "pseudo-label": pseudo_labeling.pseudo_label,
    "report": reading.report,
    "export": exporting.export,
    "push": exporting.push,
    "run": training.run_recipe,
    "sweep": sweeping.sweep,
    "reproduce": reproducing.reproduce,
    "demo": training.demo,
}
for _name, _function in _COMMANDS.items():
    app.command(_name)(_function)

_INTERRUPTED = 130
"""The exit code that typer gives to Ctrl-C."""

_LESS = (
    "Free memory and run the same command again, or ask for less: a smaller model, batch or limit."
)


def main() -> None:
    """Run the command line; an error of the package is one message, never a traceback."""
    try:
        with _sigterm_as_ctrl_c():
            app(prog_name="multirobust")
    except SystemExit as ending:
        if ending.code != _INTERRUPTED:
            raise
        _fail("Interrupted; what is finished is kept. Run the same command again to go on.", 1)
    except Interrupted as error:
        _fail(str(error), 1)
    except InputError as error:
        _fail(f"Error: {error}", 2)
    except MultirobustError as error:
        _fail(f"Error: {error}", 1)
    except Exception as error:
        if not _says_no_memory(error):
            raise
        _fail(f"Error: out of memory ({type(error).__name__}). What was saved stays. {_LESS}", 1)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, as batch systems send it, do what Ctrl-C does."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _says_no_memory(error: Exception) -> bool:
    """Whether memory ran out; PyTorch is asked only if it has been imported."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = "not enough memory", "can't allocate memory"
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _fail(message: str, code: int) -> None:
    tell(message)
    sys.exit(code)
