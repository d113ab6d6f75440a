"""Shape checks over the floors that compute, one thread, and fixtures that every folder shares."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import jaxtyping
import pytest

jaxtyping.install_import_hook(
    ["multirobust.attacks", "multirobust.defenses", "multirobust.threats"], "beartype.beartype"
)

import torch

from fixtures_data import cifar10_folder, svhn_folder, tinyimagenet_folder  # noqa: F401
from tiny_runs import finished, multirobust, run, runs  # noqa: F401

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


@pytest.fixture
def as_installed(monkeypatch):
    """Without the type checks of the tests, so that the package's own errors are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def _global_randomness_is_left_alone():
    """No code of the package may draw from PyTorch's global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was read"
