"""The ``.expt`` entry of a refined detector: the entry that was read, with the panels moved."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np

from ...geometry.detector import Detector

_SAME = 1e-9  # motions whose elements differ less (mm in the last column) are the same motion


def refined_entry(entry: dict[str, Any], old: Detector, new: Detector) -> dict[str, Any]:
    """The entry with the panels where ``new`` has them; ``old`` is the detector of the entry.

    What moves a whole group goes to that group of the hierarchy, so that its panels stay in place
    within it; a translation of the whole goes to the root, or to each panel where there is none.
    """
    shift = new.origin_mm - old.origin_mm
    if not np.any(shift) and np.array_equal(new.fast, old.fast):
        return entry
    entry = deepcopy(entry)
    same_axes = np.allclose(new.fast, old.fast, rtol=0, atol=_SAME)
    same_axes &= np.allclose(new.slow, old.slow, rtol=0, atol=_SAME)
    if same_axes and np.max(np.abs(shift - shift[0])) < 1e-6:
        for group in [entry["hierarchy"]] if entry.get("hierarchy") else entry["panels"]:
            origin = np.array(group["origin"], dtype=float)
            group["origin"] = (origin + shift.mean(axis=0)).tolist()
        return entry
    motion = _frames(new) @ np.linalg.inv(_frames(old))
    root = entry.get("hierarchy")
    if root and (root.get("children") or root.get("fast_axis")):
        _move(root, entry["panels"], motion, np.eye(4), np.eye(4))
    else:
        for panel, moved in zip(entry["panels"], motion, strict=True):
            _set_frame(panel, moved @ _frame(panel))
    return entry


def _move(node: dict[str, Any], panels: list, motion: np.ndarray, old, new) -> None:
    """Write motions (P, 4, 4) of panels into a group that hangs in a frame ``old``, now ``new``."""
    here = old @ _frame(node)
    own = motion[list(_panels_in(node))]
    if np.max(np.abs(own - own[0])) < _SAME:
        _set_frame(node, np.linalg.inv(new) @ own[0] @ here)
        return
    kept = new @ _frame(node)
    for child in node["children"]:
        if child.get("panel") is None:
            _move(child, panels, motion, here, kept)
        else:
            panel = panels[child["panel"]]
            lab = motion[child["panel"]] @ here @ _frame(panel)
            _set_frame(panel, np.linalg.inv(kept) @ lab)


def _panels_in(node: dict[str, Any]) -> Iterator[int]:
    for child in node["children"]:
        if child.get("panel") is None:
            yield from _panels_in(child)
        else:
            yield child["panel"]


def _frame(entry: dict[str, Any]) -> np.ndarray:
    """(4, 4) affine matrix of an entry: fast, slow, their cross product, origin (mm)."""
    fast, slow = (np.array(entry[k], float) for k in ("fast_axis", "slow_axis"))
    axes = np.stack([fast / np.linalg.norm(fast), slow / np.linalg.norm(slow)])
    return _affine(axes[:1], axes[1:], np.array([entry["origin"]], float))[0]


def _set_frame(entry: dict[str, Any], frame: np.ndarray) -> None:
    entry["fast_axis"] = frame[:3, 0].tolist()
    entry["slow_axis"] = frame[:3, 1].tolist()
    entry["origin"] = frame[:3, 3].tolist()


def _frames(detector: Detector) -> np.ndarray:
    return _affine(detector.fast, detector.slow, detector.origin_mm)


def _affine(fast: np.ndarray, slow: np.ndarray, origin: np.ndarray) -> np.ndarray:
    frames = np.zeros((len(origin), 4, 4))
    frames[:, :3] = np.stack([fast, slow, np.cross(fast, slow), origin], axis=2)
    frames[:, 3, 3] = 1
    return frames
