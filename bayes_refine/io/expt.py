"""DIALS ``.expt`` files (dxtbx experiment lists, JSON), read and written without DIALS.

Two conventions of the format: a beam's ``direction`` points from the sample to the source,
and where a detector has a ``hierarchy`` each frame in it is given in the frame of its parent.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry.crystal import Crystal
from ..geometry.detector import Beam, Detector
from ..geometry.experiments import Experiments, Still
from ..util.errors import InputError

_VOLUME_RANGE = (20.0, 1e9)  # Å³, of a unit cell that can exist
_STALE = ("recalculated_", "A_at_scan_points", "B_covariance")  # of the crystal before refinement
_COMPRESSED = (".bz2", ".gz")


def read_experiments(path: str | Path) -> Experiments:
    """The stills of a DIALS ``.expt`` file.

    Lengths mm and Å as in the file; ``Beam.bandwidth``, which the format does not hold, is 0.
    Identifiers that are empty or shared are replaced by ``stem#frame`` of the image, with
    ``.crystalN`` added where several crystals lie on it.

    Raises:
        InputError: the file is missing, not an experiment list, empty, rotation data, or holds
            a beam, detector, crystal or image that cannot be used.
    """
    path = Path(path)
    document = _load(path)
    entries = document["experiment"]
    beams: dict[int, Beam] = {}
    detectors: dict[int, Detector] = {}
    stills = []
    for n, (entry, name) in enumerate(zip(entries, _identifiers(document, path), strict=True)):
        with _explained(path, f"experiment {n}"):
            _refuse_rotation(document, entry)
            if entry.get("crystal") is None:
                raise InputError("it has no crystal: index the image first")
            b, d = entry["beam"], entry["detector"]
            if b not in beams:
                beams[b] = _beam(document["beam"][b])
            if d not in detectors:
                detectors[d] = _detector(document["detector"][d])
            image_path, frame = _image(document, entry, path)
            crystal = _crystal(document["crystal"][entry["crystal"]])
        stills.append(Still(name, image_path, frame, beams[b], detectors[d], crystal))
    return Experiments(stills=tuple(stills), path=path, document=document)


def write_experiments(path: str | Path, experiments: Experiments) -> None:
    """Write ``experiments.document`` back with each still's crystal and detector.

    Experiments that have no still are left out, and their crystals, detectors and image sets
    with them; image paths become absolute, identifiers those of the stills, and all else is
    kept.  A detector may differ from the document's by a translation of the whole, which goes
    to the root of the hierarchy, or to each panel where there is none.

    Raises:
        InputError: ``path`` cannot be written, or a still is not of the document.
        ValueError: a detector is not a translation of the document's.
    """
    document, source = experiments.document, experiments.path
    index = {name: n for n, name in enumerate(_identifiers(document, source))}
    originals: dict[int, Detector] = {}
    new: dict[str, list] = {key: [] for key in ("experiment", "crystal", "detector", "imageset")}
    places: dict[tuple, int] = {}  # what was written already: stills may share models

    def place(key: str, entry: dict[str, Any], *content: bytes | str) -> int:
        if (key, id(entry), *content) not in places:
            places[key, id(entry), *content] = len(new[key])
            new[key].append(None)
        return places[key, id(entry), *content]

    for still in experiments.stills:
        if still.identifier not in index:
            raise InputError(f"{source} has no experiment {still.identifier!r} to write back")
        entry = document["experiment"][index[still.identifier]]
        d = entry["detector"]
        if d not in originals:
            originals[d] = _detector(document["detector"][d])
        shift = _translation(originals[d], still.detector)
        crystal, detector, imageset = (document[key][entry[key]] for key in list(new)[1:])
        c = place("crystal", crystal, still.crystal.A.tobytes(), still.crystal.hall)
        d = place("detector", detector, shift.tobytes())
        i = place("imageset", imageset)
        new["crystal"][c] = _refined_crystal_entry(crystal, still.crystal)
        new["detector"][d] = new["detector"][d] or _shifted_detector_entry(detector, shift)
        new["imageset"][i] = _with_absolute_paths(imageset, source)
        indices = {"crystal": c, "detector": d, "imageset": i}
        new["experiment"].append({**entry, "identifier": still.identifier, **indices})
    try:
        Path(path).write_text(json.dumps({**document, **new}, indent=1), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def _explained(path: Path, where: str) -> Iterator[None]:
    """Turn what goes wrong while reading ``where`` into one sentence that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}, {where}: {error}") from None
    except KeyError as error:
        raise InputError(
            f"{path}, {where}: the key {error} is missing; write the file anew with DIALS"
        ) from None
    except (IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}, {where}: not as DIALS writes it ({error}); write the file anew with DIALS"
        ) from None


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise InputError(f"{path} is not JSON ({error}); give a DIALS .expt file") from None
    if not isinstance(document, dict) or document.get("__id__") != "ExperimentList":
        raise InputError(f"{path} is not a DIALS experiment list; give a DIALS .expt file")
    for key in ("experiment", "beam", "detector", "crystal", "imageset"):
        if not isinstance(document.get(key), list):
            raise InputError(f"{path} has no list {key!r}; write the file anew with DIALS")
    if not document["experiment"]:
        raise InputError(f"{path} holds no experiments; index some images first")
    return document


def _refuse_rotation(document: dict[str, Any], entry: dict[str, Any]) -> None:
    if entry.get("scan") is None:
        return
    scan = document["scan"][entry["scan"]]
    properties = scan.get("properties", {})  # dxtbx since 3.17; before, oscillation = start, width
    angles = properties.get("oscillation", [])
    if "oscillation_width" in properties:
        width = properties["oscillation_width"]
        width = width[0] if isinstance(width, list) else width
    elif len(angles) > 1:
        width = angles[1] - angles[0]
    else:
        width = scan.get("oscillation", [0.0, 0.0])[1]
    if width != 0:
        raise InputError(f"it is a rotation scan of {width:g}° an image: only stills can be used")


def _beam(entry: dict[str, Any]) -> Beam:
    wavelength = float(entry["wavelength"])
    if not (math.isfinite(wavelength) and wavelength > 0):
        raise InputError(f"a wavelength of {wavelength} Å cannot be; correct the beam")
    return Beam(
        wavelength=wavelength,
        s0_direction=-_unit(entry["direction"], "beam direction"),
        polarization_normal=_unit(entry.get("polarization_normal", (0, 1, 0)), "polarisation"),
        polarization_fraction=float(entry.get("polarization_fraction", 0.999)),
    )


def _crystal(entry: dict[str, Any]) -> Crystal:
    axes = np.array([entry[f"real_space_{k}"] for k in "abc"], dtype=float)
    if axes.shape != (3, 3) or not np.all(np.isfinite(axes)):
        raise InputError("the crystal's axes are not three finite vectors; index the image again")
    volume = float(np.linalg.det(axes))
    flatness = volume / max(float(np.prod(np.linalg.norm(axes, axis=1))), 1e-300)
    if flatness < 1e-3:
        raise InputError("the crystal's axes are coplanar or left-handed; index the image again")
    if not _VOLUME_RANGE[0] < volume < _VOLUME_RANGE[1]:
        raise InputError(f"a cell volume of {volume:.3g} Å³ cannot be; index the image again")
    crystal = Crystal(A=np.linalg.inv(axes), hall=entry["space_group_hall_symbol"])
    _ = crystal.space_group  # raises InputError here rather than far away
    return crystal


def _detector(entry: dict[str, Any]) -> Detector:
    panels = entry["panels"]
    frames = {n: _frame(panel) for n, panel in enumerate(panels)}
    if entry.get("hierarchy"):
        frames = dict(_lab_frames(entry["hierarchy"], np.eye(4), frames))
        if sorted(frames) != list(range(len(panels))):
            raise InputError("the detector hierarchy does not hold each panel once")
    sizes = {tuple(panel["image_size"]) for panel in panels}
    offsets = tuple(tuple(panel.get("raw_image_offset", (0, 0))) for panel in panels)
    if len(sizes) != 1 and len(set(offsets)) == 1:
        raise InputError(f"panels of one size are needed, these have {sorted(sizes)} pixels")
    pixel_size = np.array([panel["pixel_size"] for panel in panels], dtype=float)
    if not np.all(pixel_size > 0):
        raise InputError("a panel's pixel_size is not positive; correct the detector")
    lab = np.stack([frames[n] for n in range(len(panels))])
    parallax = [
        panel.get("px_mm_strategy", {}).get("type") == "ParallaxCorrectedPxMmStrategy"
        for panel in panels
    ]
    return Detector(
        origin_mm=lab[:, :3, 3],
        fast=lab[:, :3, 0],
        slow=lab[:, :3, 1],
        pixel_size_mm=pixel_size,
        shape=np.array([panel["image_size"][::-1] for panel in panels], dtype=int),
        trusted_range=np.array([panel["trusted_range"] for panel in panels], dtype=float),
        gain=np.array([panel.get("gain", 1.0) for panel in panels], dtype=float),
        pedestal=np.array([panel.get("pedestal", 0.0) for panel in panels], dtype=float),
        thickness_mm=_values(panels, "thickness") * parallax,
        mu_per_mm=_values(panels, "mu") * parallax,
        untrusted=tuple(tuple(tuple(r) for r in panel.get("mask", ())) for panel in panels),
        raw_image_offset=offsets,
    )


def _values(panels: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([panel.get(key, 0.0) for panel in panels], dtype=float)


def _lab_frames(
    group: dict[str, Any], parent: np.ndarray, panels: dict[int, np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """(panel index, (4, 4) lab frame) of the leaves below ``group``."""
    frame = parent @ _frame(group)
    for child in group["children"]:
        if "panel" in child:
            yield child["panel"], frame @ panels[child["panel"]]
        else:
            yield from _lab_frames(child, frame, panels)


def _frame(entry: dict[str, Any]) -> np.ndarray:
    """(4, 4) affine matrix with columns fast, slow, fast × slow and origin (mm)."""
    fast, slow = _unit(entry["fast_axis"], "fast axis"), _unit(entry["slow_axis"], "slow axis")
    if abs(fast @ slow) > 1e-3:
        raise InputError("a panel's fast and slow axes are not perpendicular")
    frame = np.eye(4)
    frame[:3, :3] = np.stack([fast, slow, np.cross(fast, slow)], axis=1)
    frame[:3, 3] = entry["origin"]
    if not np.all(np.isfinite(frame)):
        raise InputError("a detector origin is not finite")
    return frame


def _unit(vector: Any, name: str) -> np.ndarray:
    v = np.array(vector, dtype=float)
    length = np.linalg.norm(v)
    if v.shape != (3,) or not np.isfinite(length) or length == 0:
        raise InputError(f"the {name} {vector} is not a direction")
    return v / length


def _image(document: dict[str, Any], entry: dict[str, Any], path: Path) -> tuple[Path, int]:
    """File and frame (from 0) of an experiment's one image."""
    imageset = document["imageset"][entry["imageset"]]
    images = imageset.get("images") or [imageset["template"]]
    if len(images) != 1:
        raise InputError(
            f"its image set has {len(images)} images; give each still its own "
            "(dials.split_experiments)"
        )
    for key in ("gain", "pedestal"):
        if imageset.get(key):
            raise InputError(f"its image set has a {key} map per pixel, which cannot be read")
    if imageset.get("mask"):
        warnings.warn(
            f"{path}: the mask file {imageset['mask']} is not read; put its bad pixels in the "
            "image file's pixel_mask or the panels' mask",
            stacklevel=4,
        )
    indices = imageset.get("single_file_indices") or [0]
    return _absolute(images[0], path), int(indices[0])


def _absolute(name: str, expt: Path) -> Path:
    return Path(os.path.abspath(expt.parent / name))


def _identifiers(document: dict[str, Any], path: Path) -> list[str]:
    """One unique identifier for each experiment of the document."""
    given = [str(entry.get("identifier") or "") for entry in document["experiment"]]
    count = Counter(given)
    kept = {name for name in given if name and count[name] == 1}
    images = []
    for n, entry in enumerate(document["experiment"]):
        with _explained(path, f"experiment {n}"):
            imageset = document["imageset"][entry["imageset"]]
            name = (imageset.get("images") or [imageset["template"]])[0]
            images.append((str(name), int((imageset.get("single_file_indices") or [0])[0])))
    per_image = Counter(images)
    seen: Counter[tuple[str, int]] = Counter()
    names: list[str] = []
    for n, (name, image) in enumerate(zip(given, images, strict=True)):
        seen[image] += 1
        if name not in kept:
            name = f"{_stem(image[0])}#{image[1]}"
            if per_image[image] > 1:
                name += f".crystal{seen[image]}"
            if name in kept:  # images of one name in several folders
                name += f"@{n}"
            kept.add(name)
        names.append(name)
    return names


def _stem(name: str) -> str:
    file = Path(name)
    return Path(file.stem if file.suffix in _COMPRESSED else file).stem


def _translation(old: Detector, new: Detector) -> np.ndarray:
    """(3,) mm that carries ``old`` into ``new``."""
    shifts = new.origin_mm - old.origin_mm
    same_axes = np.allclose(new.fast, old.fast, atol=1e-9) and np.allclose(
        new.slow, old.slow, atol=1e-9
    )
    if not same_axes or np.max(np.abs(shifts - shifts[0])) > 1e-6:
        raise ValueError("a detector that is not a translation of the one read cannot be written")
    return shifts.mean(axis=0)


def _refined_crystal_entry(entry: dict[str, Any], crystal: Crystal) -> dict[str, Any]:
    old = _crystal(entry)
    if np.array_equal(old.A, crystal.A) and old.hall == crystal.hall:
        return entry
    axes = np.linalg.inv(crystal.A)
    kept = {key: value for key, value in entry.items() if not key.startswith(_STALE)}
    refined = {f"real_space_{k}": axis.tolist() for k, axis in zip("abc", axes, strict=True)}
    return {**kept, **refined, "space_group_hall_symbol": crystal.hall}


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
        out["images"] = [str(_absolute(name, source)) for name in out["images"]]
    for key in ("template", "mask", "dx", "dy"):
        if isinstance(out.get(key), str) and out[key]:
            out[key] = str(_absolute(out[key], source))
    return out
