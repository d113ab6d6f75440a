"""Shape checks over the whole package, one thread, and fixtures that every folder shares."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(["multirobust.attacks", "multirobust.defenses", "multirobust.threats"], "beartype.beartype")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


@pytest.fixture(autouse=True)
def _global_randomness_is_left_alone():
    """No code of the package may draw from PyTorch's global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was read"
