"""Write ``.expt`` files: the document that was read, with new crystals and detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...geometry.crystal import Crystal, tabulated_setting
from ...geometry.experiments import Experiments
from ...util.errors import InputError
from .detector_entry import refined_entry
from .exposure import Exposure, scan_of_one
from .frames import absolute
from .read import parse

_WRITTEN = ("crystal", "detector", "imageset", "beam")  # lists that are written anew
_STALE = ("recalculated_", "A_at_scan_points", "B_covariance")  # hold for the unrefined crystal


def write_experiments(path: str | Path, experiments: Experiments) -> None:
    """Write ``experiments.document`` back with each still's crystal, detector and wavelength.

    Experiments without a still are left out, together with their crystals, detectors, beams and
    image sets.  Image paths become absolute, and identifiers become those of the stills.
    Everything else is kept, also scans and the settings of crystals.  Where panels moved as a
    group, the move is written to the group in the detector's hierarchy (``detector_entry``).

    Raises:
        InputError: ``path`` cannot be written, or the document has no experiment of a still.
    """
    document, source = experiments.document, experiments.path
    contents = parse(document, source)
    original = {
        still.identifier: (n, still, exposure)
        for n, still, exposure in zip(
            contents.numbers, contents.stills, contents.exposures, strict=True
        )
    }
    new: dict[str, list] = {"experiment": [], **{key: [] for key in _WRITTEN}}
    scans = list(document.get("scan", []))
    places: dict[tuple, int] = {}  # of entries that are written already: stills may share them

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
        at = still.detector
        crystal, detector, imageset, beam = (document[key][entry[key]] for key in _WRITTEN)
        c = place("crystal", crystal, still.crystal.A.tobytes(), still.crystal.hall)
        d = place("detector", detector, at.origin_mm.tobytes(), at.fast.tobytes())
        i = place("imageset", imageset)
        b = place("beam", beam, np.float64(still.beam.wavelength).tobytes())
        new["crystal"][c] = _crystal_entry(crystal, old.crystal, still.crystal, exposure)
        new["detector"][d] = new["detector"][d] or refined_entry(detector, old.detector, at)
        new["imageset"][i] = _with_absolute_paths(imageset, source)
        new["beam"][b] = {**beam, "wavelength": still.beam.wavelength}
        indices = {"crystal": c, "detector": d, "imageset": i, "beam": b}
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


def _crystal_entry(
    entry: dict[str, Any], old: Crystal, new: Crystal, exposure: Exposure | None
) -> dict[str, Any]:
    """The entry of a crystal in the setting of the file, A' = A·Vᵀ with V of its Hall symbol.

    A crystal that turns during the exposure is written at the datum of the goniometer.
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


def _with_absolute_paths(imageset: dict[str, Any], source: Path) -> dict[str, Any]:
    out = dict(imageset)
    if out.get("images"):
        out["images"] = [str(absolute(name, source.parent)) for name in out["images"]]
    for key in ("template", "mask", "dx", "dy"):
        if isinstance(out.get(key), str) and out[key]:
            out[key] = str(absolute(out[key], source.parent))
    return out
