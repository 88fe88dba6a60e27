"""What all tests share: float64 in JAX, and the measured data where they are at hand."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of measured and simulated data beside the repository, or a skip."""
    path = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"the data these tests compare with are not at {path.resolve()}")
    return path.resolve()
