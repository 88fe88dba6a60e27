"""Miller indices: resolution, integer keys, unique indices, and look-up in a sorted list."""

from __future__ import annotations

import gemmi
import numpy as np


def resolution(hkl: np.ndarray, cell: gemmi.UnitCell) -> np.ndarray:
    """Bragg spacing d (n,), Å, of ``hkl`` (n, 3)."""
    return cell.calculate_d_array(np.ascontiguousarray(hkl, np.int32))


def pack_hkl(hkl: np.ndarray) -> np.ndarray:
    """(n,) int64 keys of ``hkl`` (n, 3), unique and ordered as H, K, L for |index| < 2²⁰."""
    hkl = np.asarray(hkl)
    keys = np.zeros(hkl.shape[:-1], np.int64)
    for k in range(3):
        keys <<= 21
        keys += hkl[..., k] + (1 << 20)
    return keys


def unpack_hkl(keys: np.ndarray) -> np.ndarray:
    """(n, 3) int32 indices of which :func:`pack_hkl` makes these keys (n,)."""
    digits = np.stack([keys >> 42, keys >> 21, keys], axis=-1) & ((1 << 21) - 1)
    return (digits - (1 << 20)).astype(np.int32)


def unique_hkl(hkl: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The unique indices in ``hkl`` (n, 3), in order of H, K, L.

    Returns:
        first: (m,) the first row of each. code: (n,) which of them each row is.
    """
    _, first, code = np.unique(pack_hkl(hkl), return_index=True, return_inverse=True)
    return first, code


def find(wanted: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Look up ``wanted`` (n,) in ``keys``, which ascend.

    Returns:
        row: (n,) where each is; any row for those that are absent. found: (n,) bool.
    """
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def rows_of(hkl: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(k,) row of each of ``hkl`` (k, 3) in ``among`` (m, 3), which is sorted and has them all."""
    return np.searchsorted(pack_hkl(among), pack_hkl(hkl))


def numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of integers (n,) that are not negative, and where each is among these.

    The same as ``np.unique`` with its inverse, by a table instead of sorting, where the largest
    value is not beyond the number of values by far.

    >>> numbered(np.array([7, 5, 7]))
    (array([5, 7]), array([1, 0, 1], dtype=int32))

    Returns:
        used: (m,) ascending. place: (n,) int32.
    """
    values = np.asarray(values)
    most = int(values.max(initial=0))
    if most > 2 * len(values) + 1000 or values.min(initial=0) < 0:
        used, place = np.unique(values, return_inverse=True)
        return used, place.astype(np.int32)
    there = np.zeros(most + 1, bool)
    there[values] = True
    return np.flatnonzero(there), (np.cumsum(there, dtype=np.int32) - 1)[values]
