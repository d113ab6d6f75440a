"""The projection kernel against the PyTorch form in float64: interpreted, or compiled on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from multirobust.threats import projection
from multirobust.threats.fused import fused_projection, is_fusible

NORMS = {"l1": projection.project_l1, "l2": projection.project_l2}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs the package triton"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def check(norm: str, device: str, sizes=((3, 1, 8, 8), (2, 3, 12, 12))) -> None:
    """Compare on images inside, outside, at the box, and far away; then on broken ones."""
    random = torch.Generator().manual_seed(0)
    for shape in sizes:
        x = torch.rand(shape, generator=random)
        x[0] = (x[0] > 0.5).float()
        for radius in (0.05, 1.0, 12.0):
            for scale in (1e-3, 0.3, 30.0):
                x_adv = x + scale * torch.randn(shape, generator=random)
                _check_one(norm, device, x_adv, x, torch.tensor(radius).reshape(1, 1))
        radii = torch.linspace(0.1, 2, shape[0])[:, None]
        _check_one(norm, device, x + torch.randn(shape, generator=random), x, radii)
    broken = x + 5
    broken[0, 0, 0, 0] = float("nan")
    result = _fused(norm, device, broken, x, torch.tensor([[1.0]]))
    assert result[0].isnan().all()
    assert result[1].isfinite().all()


def _fused(norm, device, x_adv, x, r):
    rows = (tensor.to(device).flatten(1) for tensor in (x_adv, x))
    limits = {"inside": projection._INSIDE, "farthest": projection._FARTHEST}
    result = fused_projection(*rows, r.to(device), norm=norm, **limits)
    return result.cpu().reshape(x.shape)


def _check_one(norm, device, x_adv, x, r):
    result = _fused(norm, device, x_adv, x, r)
    exact = NORMS[norm](x_adv.double(), x.double(), r[:, :, None, None].double())
    delta = (result.double() - x.double()).flatten(1)
    length = delta.abs().sum(1) if norm == "l1" else delta.norm(dim=1)
    assert (length <= r.double().flatten() * (1 + 1e-6)).all()
    assert 0 <= result.min() <= result.max() <= 1
    rounding = 2e-7 * max(1.0, float((x_adv - x).abs().max()))
    assert (result - exact).abs().max() <= rounding


def test_a_cpu_never_takes_the_kernel():
    rows = torch.zeros(2, 64)
    with torch.no_grad():
        assert not is_fusible(rows, rows)


@needs_triton
def test_the_kernel_finds_the_closest_points_when_interpreted():
    code = "import test_fused_projection as t; t.check('l1', 'cpu'); t.check('l2', 'cpu')"
    paths = [os.path.dirname(__file__), *sys.path]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.parametrize("norm", NORMS)
def test_the_kernel_finds_the_closest_points_on_a_gpu(norm):
    check(norm, "cuda", sizes=((3, 1, 8, 8), (64, 3, 32, 32), (8, 3, 64, 64)))


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.parametrize("norm", NORMS)
def test_on_a_gpu_the_projection_takes_the_kernel_only_without_derivatives(norm):
    x = torch.rand(4, 3, 32, 32, device="cuda")
    x_adv = (x + torch.randn_like(x)).requires_grad_()
    with torch.no_grad():
        fast = NORMS[norm](x_adv, x, 0.5)
    slow = NORMS[norm](x_adv, x, 0.5)
    assert slow.requires_grad
    assert (fast - slow).abs().max() < 1e-6
