"""The front door of an evaluation: is this a classifier of these images?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multirobust.data import Split
from multirobust.errors import InputError
from multirobust.evaluation.runner import out_of_memory

__all__ = ["check_classifier", "check_model", "device_of"]

FEW = 8
"""Images that the model is asked about."""


def check_model(model: nn.Module, split: Split) -> None:
    """Raise an InputError unless the model is a classifier of these images, ready for use.

    Besides what `check_classifier` asks for, it must be in evaluation mode and return logits, not
    probabilities. An evaluation reports these two as findings of its audit instead.

    Args:
        model: Maps images in [0, 1] to logits.
        split: The images it is to classify.
    """
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    training = [name or "the model" for name, part in parts if part.training]
    if training:
        raise InputError(
            f"model must be in evaluation mode, but {training[0]} is in training mode; call "
            "model.eval() first, so that BatchNorm and dropout behave as in use."
        )
    logits = check_classifier(model, split)
    sums = logits.float().sum(dim=1)
    if logits.min() >= 0 and logits.max() <= 1 and (sums - 1).abs().max() < 1e-3:
        raise InputError(
            "model must return logits, got rows of probabilities that sum to one, which hide "
            "gradients from attacks; drop the final softmax."
        )


def check_classifier(model: nn.Module, split: Split) -> Tensor:
    """Return the logits of the first images, or raise unless there is one for each class.

    Args:
        model: Maps images in [0, 1] to logits.
        split: The images it is to classify.

    Returns:
        Logits (b, classes), of those images on which the model does not raise: an evaluation goes
        on without the others.

    Raises:
        InputError: If the model is no module, cannot take any of the images, or does not return
            finite logits of shape (b, classes).
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    logits = _logits_of_a_few(model, split)
    highest = int(split.labels.max())
    classes = max(highest + 1, 2)
    if logits.shape[1] < classes:
        raise InputError(
            f"model must return one logit for each class, got {logits.shape[1]} logits where the "
            f"labels go up to {highest}; use a model with at least {classes} classes."
        )
    if not logits.isfinite().any():
        raise InputError(
            "model must return finite logits, got none for the first images; check its weights."
        )
    return logits


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU if it has none."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


@torch.no_grad()
def _logits_of_a_few(model: nn.Module, split: Split) -> Tensor:
    """Ask about the first images together; where that raises, about each alone."""
    x = split.first(min(FEW, len(split))).floats().to(device_of(model))
    try:
        answer = model(x)
    except Exception:
        answer = None  # and the memory that the error held is free
    else:
        return _checked(answer, x)
    return torch.cat(_one_by_one(model, x))


def _one_by_one(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the logits of each image on which the model does not raise, one at least."""
    answers, failures = [], []
    for image in x.split(1):
        try:
            answer = model(image)
        except Exception as error:
            failures.append(error)
        else:
            answers.append(_checked(answer, image))
    if answers:
        return answers
    error = failures[0]
    if out_of_memory(error):
        raise error
    told = f"{type(error).__name__}: {error}".rstrip(" .")
    raise InputError(
        f"model cannot take images of shape {tuple(x.shape[1:])} in {x.dtype}, for each of the "
        f"first {len(x)} it raised {told}. Build it with the channels, size and dtype of the "
        "images."
    ) from error


def _checked(logits: object, x: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"model must return logits of shape (b, classes), got {shape} for {tuple(x.shape)}."
        )
    return logits
