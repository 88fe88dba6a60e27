"""Panels as a stack of arrays and as tiles of one: what is cut where, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bayes_refine.geometry.detector import Detector
from bayes_refine.io.image_shape import ImageShape
from bayes_refine.util.errors import InputError

HERE = Path("run.h5")


def shape_of(sizes, offsets=()) -> ImageShape:
    """Of panels of ``sizes`` (ny, nx), at ``offsets`` (x, y) of one array."""
    n = len(sizes)
    detector = Detector(
        origin_mm=np.tile([0.0, 0.0, 100.0], (n, 1)),
        fast=np.tile([1.0, 0.0, 0.0], (n, 1)),
        slow=np.tile([0.0, 1.0, 0.0], (n, 1)),
        pixel_size_mm=np.full((n, 2), 0.1),
        shape=np.array(sizes),
        trusted_range=np.tile([-1.0, 1e6], (n, 1)),
        gain=np.ones(n),
        pedestal=np.zeros(n),
        thickness_mm=np.zeros(n),
        mu_per_mm=np.zeros(n),
        raw_image_offset=offsets,
    )
    return ImageShape.of(detector, HERE)


def test_tiles_of_unequal_size_are_cut_at_their_offsets():
    """An array whose values say where they lie: 100 y + x."""
    y, x = np.mgrid[:9, :12]
    array = 100 * y + x
    tiles = shape_of([(4, 5), (3, 6)], ((1, 2), (6, 5)))
    cut = tiles.on_panels(array, HERE, "an image")
    assert cut.shape == tiles.array == (2, 4, 6)
    assert cut[0, 0, 0] == 201 and cut[0, 3, 4] == 505 and cut[1, 2, 5] == 711
    assert (cut[0, :, 5] == 0).all() and (cut[1, 3] == 0).all()
    np.testing.assert_array_equal(tiles.on_panels(array[None], HERE, "an image"), cut)


def test_a_stack_stays_as_it_is():
    stack = np.arange(24).reshape(2, 3, 4)
    for offsets in ((), ((0, 0), (0, 0)), ((0, 0), (4, 0))):
        panels = shape_of([(3, 4)] * 2, offsets)
        np.testing.assert_array_equal(panels.on_panels(stack, HERE, "an image"), stack)


@pytest.mark.parametrize(
    ("sizes", "offsets", "shape"),
    [
        ([(3, 4)] * 2, (), (3, 8)),  # tiles, and nothing says where
        ([(3, 4)] * 2, ((0, 0), (0, 0)), (3, 8)),
        ([(3, 4)] * 2, ((0, 0), (3, 0)), (3, 8)),  # they overlap
        ([(3, 4)] * 2, ((0, 0), (5, 0)), (3, 8)),  # one goes beyond the array
        ([(3, 4)] * 2, ((0, 0), (4, 0)), (8, 3)),  # transposed
        ([(3, 4)] * 2, ((0, 0), (4, 0)), (2, 3, 8)),
        ([(3, 4)] * 2, ((0, 0), (4, 0)), (200_000, 200_000)),
        ([(3, 4)], (), (4, 3)),
        ([(3, 4)], ((0, 0),), (30, 40)),  # another detector's
        ([(3, 4), (4, 3)], (), (2, 4, 4)),  # unequal panels are no stack
        ([(3, 4)], (), (12,)),
        ([(3, 4)], (), ()),
    ],
)
def test_other_shapes_are_refused_with_both_shapes(sizes, offsets, shape):
    with pytest.raises(InputError, match=r"run\.h5 has an image of shape .* \(panel, y, x\)"):
        shape_of(sizes, offsets).check(shape, HERE, "an image")
