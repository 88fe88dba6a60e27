"""Typed columns that grow: the rows come back in order, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_refine.io import growing_columns
from bayes_refine.io.growing_columns import GrowingColumns
from bayes_refine.util import large_arrays


@pytest.mark.parametrize("large", [large_arrays.LARGE, 20])
def test_rows_come_back_in_order(monkeypatch, large):
    """Also where full blocks are in files."""
    monkeypatch.setattr(growing_columns, "ROWS", 7)
    monkeypatch.setattr(large_arrays, "LARGE", large)
    columns = GrowingColumns({"hkl": (np.int32, 3), "intensity": (float, 1)})
    rng, parts = np.random.default_rng(0), []
    for n in (0, 3, 4, 7, 20, 1):
        part = {"hkl": rng.integers(-9, 9, (n, 3)), "intensity": rng.normal(size=n)}
        columns.extend(part)
        parts.append(part)
    assert len(columns) == 35
    whole = columns.taken()
    assert whole["hkl"].dtype == np.int32
    for name, values in whole.items():
        np.testing.assert_array_equal(values, np.concatenate([p[name] for p in parts]))
    assert len(columns) == 0
