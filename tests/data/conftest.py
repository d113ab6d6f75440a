from __future__ import annotations

import pytest


@pytest.fixture
def as_installed(monkeypatch):
    """Without the type checks of the tests, so that the package's own errors are seen."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
