"""Writing ``.expt`` files: what was read, with the stills' crystals and detectors."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from ...geometry.crystal import Crystal, tabulated_setting
from ...geometry.detector import Detector
from ...geometry.experiments import Experiments
from ...util.errors import InputError
from .exposure import Exposure, scan_of_one
from .frames import absolute
from .read import parse

_STALE = ("recalculated_", "A_at_scan_points", "B_covariance")  # of the crystal before refinement


def write_experiments(path: str | Path, experiments: Experiments) -> None:
    """Write ``experiments.document`` back with each still's crystal and detector.

    Experiments that have no still are left out, and their crystals, detectors and image sets
    with them; image paths become absolute, identifiers those of the stills, and all else is
    kept, scans and the settings of the crystals too.  A detector may differ from the document's
    by a translation of the whole, which goes to the root of the hierarchy, or to each panel where
    there is none.

    Raises:
        InputError: ``path`` cannot be written, or a still is not of the document.
        ValueError: a detector is not a translation of the document's.
    """
    document, source = experiments.document, experiments.path
    contents = parse(document, source)
    original = {
        still.identifier: (n, still, exposure)
        for n, still, exposure in zip(
            contents.numbers, contents.stills, contents.exposures, strict=True
        )
    }
    new: dict[str, list] = {key: [] for key in ("experiment", "crystal", "detector", "imageset")}
    scans = list(document.get("scan", []))
    places: dict[tuple, int] = {}  # what was written already: stills may share models

    def place(key: str, entry: dict[str, Any], *content: bytes | str) -> int:
        if (key, id(entry), *content) not in places:
            places[key, id(entry), *content] = len(new[key])
            new[key].append(None)
        return places[key, id(entry), *content]

    for still in experiments.stills:
        if still.identifier not in original:
            raise InputError(f"{source} has no experiment {still.identifier!r} to write back")
        n, old, exposure = original[still.identifier]
        entry = document["experiment"][n]
        shift = _translation(old.detector, still.detector)
        crystal, detector, imageset = (document[key][entry[key]] for key in list(new)[1:])
        c = place("crystal", crystal, still.crystal.A.tobytes(), still.crystal.hall)
        d = place("detector", detector, shift.tobytes())
        i = place("imageset", imageset)
        new["crystal"][c] = _crystal_entry(crystal, old.crystal, still.crystal, exposure)
        new["detector"][d] = new["detector"][d] or _shifted_detector_entry(detector, shift)
        new["imageset"][i] = _with_absolute_paths(imageset, source)
        indices = {"crystal": c, "detector": d, "imageset": i}
        if exposure is not None and exposure.image is not None:
            indices["scan"] = len(scans)
            scans.append(scan_of_one(document["scan"][entry["scan"]], exposure.image))
        new["experiment"].append({**entry, "identifier": still.identifier, **indices})
    try:
        Path(path).write_text(
            json.dumps({**document, **new, "scan": scans}, indent=1), encoding="utf-8"
        )
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _translation(old: Detector, new: Detector) -> np.ndarray:
    """(3,) mm that carries ``old`` into ``new``."""
    shifts = new.origin_mm - old.origin_mm
    same_axes = np.allclose(new.fast, old.fast, atol=1e-9) and np.allclose(
        new.slow, old.slow, atol=1e-9
    )
    if not same_axes or np.max(np.abs(shifts - shifts[0])) > 1e-6:
        raise ValueError("a detector that is not a translation of the one read cannot be written")
    return shifts.mean(axis=0)


def _crystal_entry(
    entry: dict[str, Any], old: Crystal, new: Crystal, exposure: Exposure | None
) -> dict[str, Any]:
    """The crystal in the setting of the file: A' = A·Vᵀ of the file's Hall symbol, at the datum of
    the goniometer if it turns during the exposure.
    """
    if np.array_equal(old.A, new.A) and old.hall == new.hall:
        return entry
    A, hall = new.A, new.hall
    if hall == old.hall:
        hall = entry["space_group_hall_symbol"]
        A = A @ tabulated_setting(hall)[1].T
    if exposure is not None:
        A = exposure.mount.T @ A
    axes = np.linalg.inv(A)
    kept = {key: value for key, value in entry.items() if not key.startswith(_STALE)}
    refined = {f"real_space_{k}": axis.tolist() for k, axis in zip("abc", axes, strict=True)}
    return {**kept, **refined, "space_group_hall_symbol": hall}


def _shifted_detector_entry(entry: dict[str, Any], shift_mm: np.ndarray) -> dict[str, Any]:
    if not np.any(shift_mm):
        return entry
    entry = deepcopy(entry)
    for group in [entry["hierarchy"]] if entry.get("hierarchy") else entry["panels"]:
        group["origin"] = (np.array(group["origin"], dtype=float) + shift_mm).tolist()
    return entry


def _with_absolute_paths(imageset: dict[str, Any], source: Path) -> dict[str, Any]:
    out = dict(imageset)
    if out.get("images"):
        out["images"] = [str(absolute(name, source.parent)) for name in out["images"]]
    for key in ("template", "mask", "dx", "dy"):
        if isinstance(out.get(key), str) and out[key]:
            out[key] = str(absolute(out[key], source.parent))
    return out
