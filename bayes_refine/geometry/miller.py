"""Miller indices: their resolution; as keys, the different ones, and where they are in a list."""

from __future__ import annotations

import gemmi
import numpy as np


def resolution(hkl: np.ndarray, cell: gemmi.UnitCell) -> np.ndarray:
    """d of ``hkl`` (n, 3), (n,) Å."""
    return cell.calculate_d_array(np.ascontiguousarray(hkl, np.int32))


def pack_hkl(hkl: np.ndarray) -> np.ndarray:
    """(n,) int64 keys of ``hkl`` (n, 3), unique and ordered as H, K, L for |index| < 2²⁰."""
    h, k, l = np.moveaxis(np.asarray(hkl, np.int64) + (1 << 20), -1, 0)  # noqa: E741
    return (h << 42) | (k << 21) | l


def unique_hkl(hkl: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row (m,) of each different index of ``hkl`` (n, 3), ordered as H, K, L, and which of
    them each row is (n,).
    """
    _, first, code = np.unique(pack_hkl(hkl), return_index=True, return_inverse=True)
    return first, code


def find(wanted: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each of ``wanted`` (n,) is among ``keys``, ascending, some row if nowhere; and whether
    it is there (n,).
    """
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def rows_of(hkl: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(k,) rows of ``hkl`` (k, 3) among (m, 3), which is sorted and holds them all."""
    return np.searchsorted(pack_hkl(among), pack_hkl(hkl))
