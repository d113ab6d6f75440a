"""Weights from a file into a model, without running code that the file may hold."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multirobust.errors import InputError, suggestion

__all__ = [
    "load_weights",
    "read_weights",
    "state_digest",
    "weights_digest",
    "without_prefixes",
]

NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Entries of a checkpoint that usually hold the state dict."""

PREFIXES = ("module.", "model.", "_orig_mod.")
"""What DataParallel, a wrapper class and torch.compile put before every name."""

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
SHOWN = 5
EXTRA_STATE = "_extra_state"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU; nothing in the file is executed.

    A pickle is read with `weights_only=True`. A state dict that lies in a checkpoint under
    "state_dict", "model_state_dict", "model" or "net" is found there, also one inside another.

    Args:
        path: A `.safetensors` file, or one of `torch.save` (`.pt`, `.pth`, `.bin`, `.ckpt`,
            `.tar`).

    Returns:
        Names and tensors as they stand in the file.

    Raises:
        InputError: If there is no such file, it is damaged, it needs code to be loaded, or it holds
            no state dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        folder = path.parent
        beside = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
        raise InputError(
            f"weights must be a file, got {str(path)!r}, which is "
            f"{'a folder' if path.is_dir() else 'missing'}.{suggestion(path.name, beside)} Give "
            "the path of a .safetensors or .pt file."
        )
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix not in PICKLES:
        raise InputError(
            f"weights must be a .safetensors file or one of torch.save ({', '.join(PICKLES)}), got "
            f"{str(path)!r}; rename it to what it is."
        )
    return _state_dict(_pickle(path), path)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Load a state dict in place; every weight of the model must be there, and no other.

    Prefixes that wrappers put before the names ("module.", "model.", "_orig_mod.") are taken off if
    the model does not have them. Tied weights may be there once.

    Args:
        model: Takes the weights; it keeps its own dtype and device.
        state: Names and tensors.
        source: Where they come from, for the message.

    Raises:
        InputError: If names or shapes differ; it says how many and lists the first few.
    """
    own = model.state_dict(keep_vars=True)
    state = without_prefixes(state, own)
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and _shape(own[name]) not in (None, _shape(state[name]))
    ]
    if shapes:
        raise InputError(
            f"weights: {source} is of another model: {_listed('shape differs', shapes)}. Build the "
            "model with the sizes that it was trained with."
        )
    try:
        missing, foreign = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise InputError(
            f"weights: {source} cannot be loaded into the model: {error} Use the version of the "
            "model that wrote it."
        ) from error
    missing = _really_missing(missing, own, state)
    if missing or foreign:
        parts = [
            _listed(f"weight{'s'[: len(names) != 1]} {kind}", names)
            for kind, names in (("missing", missing), ("not expected", foreign))
            if names
        ]
        raise InputError(
            f"weights: {source} is of another model: {'; '.join(parts)} (the model has {len(own)}, "
            f"the file {len(state)}). Check that the model is the one that was saved."
        )


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's state dict, the same on every device.

    It covers name, dtype, shape and bytes of every parameter and buffer, in the order of their
    names. It does not cover the code: two architectures with equal weights have one digest.
    """
    return state_digest(model.state_dict())


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a state dict, as `weights_digest` does for a model."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if not isinstance(value, Tensor):
            continue
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def without_prefixes(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Take off the prefixes of wrappers, as far as that leads to more of the wanted names."""
    variants = [dict(state)]
    for variant in variants:  # grows while it is walked: one prefix after another
        for prefix in PREFIXES:
            renamed = {name.removeprefix(prefix): value for name, value in variant.items()}
            known = any(renamed.keys() == other.keys() for other in variants)
            if len(renamed) == len(variant) and not known:
                variants.append(renamed)
    return max(variants, key=lambda variant: len(variant.keys() & set(wanted)))


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"weights: {path} is no safetensors file, or damaged ({error}); copy it again."
        ) from error


def _pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        if needed is None:
            raise _damaged(path, error) from error
        raise InputError(
            f"weights: {path} holds {needed[1].rstrip('.')}, which needs code to be run, so it was "
            "not loaded. If you trust the file, convert it where its code is installed: "
            f"checkpoint = torch.load({path.name!r}, weights_only=False), then "
            'safetensors.torch.save_file(state_dict, "model.safetensors") with the state dict in '
            "it."
        ) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    if "TorchScript" in str(error):
        return InputError(
            f"weights: {path} is a TorchScript program, not a state dict; give a function that "
            "returns torch.jit.load(...) as the model, and no weights."
        )
    detail = str(error).strip().splitlines()
    return InputError(
        f"weights: {path} is no file of torch.save, or damaged ({type(error).__name__}"
        f"{': ' + detail[0][:120] if detail else ''}); copy it again."
    )


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, which may lie some levels down."""
    if isinstance(content, Mapping):
        inner = [key for key in NESTED if isinstance(content.get(key), Mapping)]
        if len(inner) > 1:
            raise InputError(
                f"weights: {path} holds several state dicts ({', '.join(inner)}); save the one to "
                "be used by itself."
            )
        if inner:
            return _state_dict(content[inner[0]], path)
        named = {k: v for k, v in content.items() if not str(k).endswith(EXTRA_STATE)}
        if named and all(isinstance(value, Tensor) for value in named.values()):
            return {str(key): value for key, value in content.items()}
    entries = [f"{key} ({type(value).__name__})" for key, value in _items(content)]
    found = _listed("entry" if len(entries) == 1 else "entries", entries)
    raise InputError(
        f"weights: {path} holds no state dict, neither at its top nor under {', '.join(NESTED)}; "
        f"it is a {type(content).__name__} of {found}. Save model.state_dict()."
    )


def _items(content: Any) -> Iterable[tuple[Any, Any]]:
    return content.items() if isinstance(content, Mapping) else ()


def _really_missing(
    missing: Iterable[str], own: Mapping[str, Any], state: Mapping[str, Tensor]
) -> list[str]:
    """Leave out extra state, which no safetensors file can hold, and what is tied to a weight."""
    there = {id(own[name]) for name in state if name in own}
    return [n for n in missing if not n.endswith(EXTRA_STATE) and id(own.get(n)) not in there]


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape, or None for what has none (yet): extra state, a lazy parameter."""
    lazy = nn.parameter.is_lazy(value) or not isinstance(value, Tensor)
    return None if lazy else tuple(value.shape)


def _listed(kind: str, names: Collection[str]) -> str:
    """Say how many there are, and name the first few."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {kind}: {', '.join(list(names)[:SHOWN])}{more}"
