"""Sum the partials of a reflection on successive frames of one crystal before they are merged.

Errors of J_model of a reflection (the curve, the few blocks that diffract) are the same on the next
frame, so that they do not average out over a crossing of the sphere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..geometry.experiments import Still
from ..geometry.miller import pack_hkl
from ..physics.variance_of_J import variance_of_J
from .reflections import Reflections
from .sweeps import crystals_of

_GAP = 2  # frames from one partial to the next of the same crossing


class Partials(NamedTuple):
    """The sums that n observations belong to.

    Attributes:
        group: (n,) number of its sum, ascending with the unique reflection.
        weight: (n,) in the sum Σ w J, that of the most precise scale by counting.
        share: (n,) w g/Σ w g within the sum.
    """

    group: np.ndarray
    weight: np.ndarray
    share: np.ndarray

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sums of values (n,) over each group."""
        return np.bincount(self.group, values)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Means of values (n,) by share over each group."""
        return self.total(self.share * values)


def partials_of(
    r: Reflections, rows: np.ndarray, code: np.ndarray, stills: Sequence[Still]
) -> Partials | None:
    """Partials of the observations ``rows``; None of stills, of which each is its own.

    Args:
        code: (n,) unique reflection of each row. stills: of the run.
    """
    if all(still.turn_mrad is None for still in stills):
        return None
    crystal, change = crystals_of(stills)
    image = r.image[rows]
    hkl = np.einsum("nij,nj->ni", change[image], r.hkl[rows])
    keys = code, crystal[image], pack_hkl(hkl), image
    order = np.lexsort(keys[::-1])
    new = np.zeros(len(rows), bool)
    new[:1] = True
    for key, step in zip(keys, (0, 0, 0, _GAP), strict=True):
        new[1:] |= np.diff(key[order]) > step
    group = np.empty(len(rows), int)
    group[order] = np.cumsum(new) - 1
    scale = r.scale[rows]
    expected = scale * np.maximum(r.expected[rows], 0.0)
    counting = variance_of_J(expected, r.variance_background[rows], r.variance_signal[rows])
    weight = scale / counting
    strongest = np.zeros(group.max(initial=-1) + 1)
    np.maximum.at(strongest, group, weight)
    weight = weight / np.maximum(strongest, 1e-300)[group]
    of_sum = np.bincount(group, weight * scale)[group]
    return Partials(group, weight, weight * scale / np.maximum(of_sum, 1e-300))
