"""Indices and numbers in tables."""

import numpy as np
import pytest

from bayes_refine.geometry.miller import numbered


@pytest.mark.parametrize("factor", [1, 10**6])
def test_numbers_without_gaps_are_numpys(factor):
    """By a table where numbers are small, by sorting where they are large."""
    values = np.random.default_rng(0).integers(0, 50, 200) * factor
    used, place = numbered(values)
    expected, inverse = np.unique(values, return_inverse=True)
    np.testing.assert_array_equal(used, expected)
    np.testing.assert_array_equal(place, inverse)
    assert place.dtype == np.int32


def test_no_number_and_negative_numbers():
    assert [len(x) for x in numbered(np.zeros(0, int))] == [0, 0]
    used, place = numbered(np.array([-2, 3, -2]))
    assert used.tolist() == [-2, 3] and place.tolist() == [0, 1, 0]
