"""Groups of panels that move together, and small moves of them in their own plane.

A move of a group is (x, y, turn): a shift along the fast and the slow axis of the group's first
panel, in pixels of that panel, and a turn about that panel's normal through the group's centre,
in mrad.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .crystal import cross_matrix, rotation_matrix
from .detector import Detector


def centres(detector: Detector) -> np.ndarray:
    """(g, 3) mm, centre of each group: the mean of the middles of its panels."""
    half = detector.shape[:, ::-1] * detector.pixel_size_mm / 2
    middle = detector.origin_mm + half[:, :1] * detector.fast + half[:, 1:] * detector.slow
    group = detector.group
    return np.stack([middle[group == k].mean(axis=0) for k in range(group.max() + 1)])


def shifts_mm(detector: Detector, moves: np.ndarray) -> np.ndarray:
    """(g, 3) mm, lab frame: the shifts of the moves (g, 3)."""
    first = _first_panels(detector)
    along = np.asarray(moves)[:, :2] * detector.pixel_size_mm[first]
    return along[:, :1] * detector.fast[first] + along[:, 1:] * detector.slow[first]


def moved_groups(detector: Detector, moves: np.ndarray) -> Detector:
    """The detector after its groups have made the ``moves`` (g, 3)."""
    group = detector.group
    normal = detector.normal[_first_panels(detector)]
    turn = rotation_matrix(np.asarray(moves)[:, 2:] * normal)[group]
    centre = centres(detector)[group]
    about = np.einsum("pij,pj->pi", turn, detector.origin_mm - centre)
    return replace(
        detector,
        origin_mm=about + centre + shifts_mm(detector, moves)[group],
        fast=np.einsum("pij,pj->pi", turn, detector.fast),
        slow=np.einsum("pij,pj->pi", turn, detector.slow),
    )


def displacements(
    detector: Detector, panel: np.ndarray, lab_mm: np.ndarray, centre_mm: np.ndarray
) -> np.ndarray:
    """How far a point of a panel moves, mm, when its group moves by 1 px, 1 px and 1 mrad.

    Args:
        panel: (n,). lab_mm: (n, 3) the points.
        centre_mm: (g, 3) the points about which groups turn.

    Returns:
        (n, 3, 3), a row for each of the three moves.
    """
    group = detector.group[panel]
    first = _first_panels(detector)[group]
    size = detector.pixel_size_mm[first]
    arm = lab_mm - centre_mm[group]
    turned = np.einsum("nij,nj->ni", cross_matrix(detector.normal[first]), arm)
    along = (size[:, :1] * detector.fast[first], size[:, 1:] * detector.slow[first])
    return np.stack([*along, 1e-3 * turned], axis=1)


def _first_panels(detector: Detector) -> np.ndarray:
    """(g,) the first panel of each group."""
    return np.unique(detector.group, return_index=True)[1]
