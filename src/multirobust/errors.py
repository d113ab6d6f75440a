"""The exceptions of the package, and the one way to word them.

    MultirobustError
    ├── InputError (also ValueError)     an argument, a tensor or a model breaks a rule
    │   └── ConfigError                  one or more fields of a recipe break theirs
    ├── DataError                        a data set is missing, truncated or not what it says it is
    ├── CheckpointError                  a checkpoint is truncated, foreign or of another recipe
    ├── RunError                         an output folder cannot be used
    ├── TrainingError                    training cannot go on: NaN, no memory, a process is lost
    └── Interrupted                      the user stopped a run; it is saved and can go on

Every message names the argument, the rule, the value and the way out. The command line prints it
alone, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "InputError",
    "Interrupted",
    "MultirobustError",
    "RunError",
    "TrainingError",
    "lookup_error",
    "suggestion",
]


class MultirobustError(Exception):
    """Base of every error that the package raises on purpose."""


class InputError(MultirobustError, ValueError):
    """An argument, a tensor or a model breaks a rule that its message states."""


class ConfigError(InputError):
    """Fields of a recipe break their rules; `problems` holds one line for each.

    Args:
        problems: One sentence a problem, each with the path of its field.
    """

    def __init__(self, problems: Iterable[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(MultirobustError):
    """A data set is missing, truncated, or not what it claims to be."""


class CheckpointError(MultirobustError):
    """A checkpoint is truncated, foreign, or belongs to another recipe."""


class RunError(MultirobustError):
    """An output folder is not writable, holds another run, or holds none."""


class TrainingError(MultirobustError):
    """Training cannot go on: NaN or infinity, memory ran out, or one of its processes is lost."""


class Interrupted(MultirobustError):
    """The user stopped a run; what it had done is saved, and the message says how to go on."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of the known names, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def lookup_error(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Word the error of an unknown name: the value, the closest name, and all known names.

    >>> lookup_error("model", "wrn2810", ["wrn_28_10", "small_cnn"])
    InputError("Unknown model: 'wrn2810'. Did you mean 'wrn_28_10'? Known: small_cnn, wrn_28_10.")
    """
    names = sorted(known)
    return InputError(
        f"Unknown {kind}: {name!r}.{suggestion(name, names)} Known: {', '.join(names)}."
    )
