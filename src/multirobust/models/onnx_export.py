"""A classifier as an ONNX file that has been read back and compared before anyone gets it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import nn

from multirobust.errors import InputError, RunError

__all__ = ["OnnxFile", "export_onnx"]

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of a logit that is accepted, relative to the largest logit or 1."""

BATCHES = (1, 2, 7, 64)
"""Sizes of the batches that are compared, so that the batch axis is known to be free."""


@final
@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A checked ONNX file.

    Args:
        content: Its bytes.
        difference: Largest absolute difference of a logit from PyTorch's.
        tolerance: Largest that was accepted.
        images: Random images that were compared.
        opset: Version of the operator set.
    """

    content: bytes
    difference: float
    tolerance: float
    images: int
    opset: int = OPSET


def export_onnx(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    facts: Mapping[str, Any] | None = None,
) -> OnnxFile:
    """Return a classifier as ONNX with a free batch axis, compared with the original.

    Input "images": float32 (batch, c, h, w) in [0, 1]; normalization is part of the graph. Output
    "logits": float32 (batch, classes). The contract is in the file's metadata_props too.

    Args:
        model: A classifier on the CPU in evaluation mode; left as it is.
        image_shape: Channels, height and width of the images.
        facts: Further entries of metadata_props; other values than text are stored as JSON.

    Raises:
        InputError: If onnx, onnxruntime or onnxscript is not installed, or the model is in
            training mode.
        RunError: If the file, run by onnxruntime, gives other logits than the model.
    """
    if model.training:
        raise InputError("model: must be in evaluation mode to be exported; call model.eval().")
    onnx, runtime = _libraries()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (torch.full((2, *image_shape), 0.5),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:
        raise RunError("PyTorch made no ONNX program; use another version of torch.")
    graph = program.model_proto
    for name, value in {**_contract(image_shape), **(facts or {})}.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        graph.metadata_props.add(key=f"multirobust.{name}", value=text)
    onnx.checker.check_model(graph)
    stream = io.BytesIO()
    onnx.save_model(graph, stream)
    return _compared(stream.getvalue(), model, image_shape, runtime)


def _contract(image_shape: tuple[int, int, int]) -> dict[str, str]:
    shape = ", ".join(map(str, image_shape))
    return {
        "input": f"images: float32 (batch, {shape}), pixels in [0, 1]; normalization is inside",
        "output": "logits: float32 (batch, classes); the largest is the prediction",
        "opset": str(OPSET),
    }


def _compared(
    content: bytes, model: nn.Module, image_shape: tuple[int, int, int], runtime: Any
) -> OnnxFile:
    """Run the file on random images and hold its logits against the model's."""
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    difference = largest = 0.0
    for size in BATCHES:
        x = torch.rand((size, *image_shape), generator=generator)
        with torch.no_grad():
            expected = model(x).numpy()
        (found,) = session.run(["logits"], {"images": x.numpy()})
        if found.shape != expected.shape:
            raise RunError(
                f"model.onnx gives logits of shape {found.shape} for {size} images, the model "
                f"{expected.shape}; it was not written. Use other versions of torch and onnx."
            )
        difference = max(difference, float(np.abs(found - expected).max(initial=0)))
        largest = max(largest, float(np.abs(expected).max(initial=0)))
    tolerance = TOLERANCE * max(1.0, largest)
    if not difference <= tolerance:  # NaN too
        raise RunError(
            f"model.onnx gives other logits than the model, by up to {difference:.3g} where "
            f"{tolerance:.3g} is accepted; it was not written. Use other versions of torch and "
            "onnxruntime."
        )
    return OnnxFile(content, difference, tolerance, sum(BATCHES))


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"--onnx needs the module {error.name!r}: pip install 'multirobust[onnx]'"
        ) from error
    return onnx, onnxruntime


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself: its own deprecations, and torchvision's lack."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.filterwarnings("ignore", category=category, module=r"copyreg|copy|torch\.")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
