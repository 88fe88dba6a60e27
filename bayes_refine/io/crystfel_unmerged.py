"""Integrated stills from a CrystFEL stream, for ``merge``."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np

from ..geometry.crystal import cell_from_real_axes
from ..util.errors import InputError
from .crystfel_geometry import HC_EV_ANGSTROM, Geometry
from .crystfel_geometry_text import parse_geometry
from .crystfel_stream import StreamCrystal, read_stream
from .gemmi_files import cell_of
from .growing_columns import GrowingColumns
from .unmerged import Unmerged

COLUMNS = {
    "hkl": (np.int32, 3),
    "J": (float, 1),
    "sigma": (float, 1),
    "batch": (np.int32, 1),
    "excitation_error": (float, 1),
    "xy_px": (float, 2),
}
AXIS_NM = {"a": "a", "b": "b", "c": "c", "al": "alpha", "be": "beta", "ga": "gamma"}


def unmerged_of_stream(
    path: str | Path,
    space_group: gemmi.SpaceGroup,
    cell: gemmi.UnitCell | None = None,
) -> Unmerged:
    """Read all integrated reflections of a stream; each crystal counts as an image.

    ε_r = |s0 + A·h| − 1/λ follows from the axes of each crystal and the photon energy of each
    image.  If the stream contains its geometry, positions are in mm in the lab frame.

    Args:
        space_group: of the crystals; a stream has none, since CrystFEL merges by point group.
        cell: Å and degrees; the median of the crystals' cells by default.

    Raises:
        InputError: the file is no stream, or has no crystal that can be read, of an image with
            its photon energy.
    """
    header, chunks = read_stream(path)
    frame = LabFrame(
        parse_geometry(header.geometry, f"{path} (geometry)") if header.geometry else None
    )
    rows = GrowingColumns(COLUMNS)
    shots = GrowingColumns({"cell": (float, 6), "wavelength": (float, 1)})
    names: dict[int, str] = {}
    unread: list[str] = []
    for chunk in chunks:
        if chunk.unread:
            unread.append(chunk.unread)
        if not chunk.crystals:
            continue
        if not chunk.photon_energy_ev > 0:
            unread.append(f"{path}, line {chunk.line}: no photon_energy_eV for this image")
            continue
        wavelength = HC_EV_ANGSTROM / chunk.photon_energy_ev
        for k, crystal in enumerate(chunk.crystals, start=1):
            r = crystal.reflections
            of_cell = cell_from_real_axes(np.linalg.inv(crystal.A)).parameters
            shots.extend({"cell": np.array([of_cell]), "wavelength": np.array([wavelength])})
            which = f" crystal {k}" if len(chunk.crystals) > 1 else ""
            names[len(shots)] = chunk.name + which
            rows.extend(
                {
                    "hkl": r.hkl,
                    "J": r.intensity,
                    "sigma": r.sigma,
                    "batch": np.full(len(r), len(shots)),
                    "excitation_error": excitation_errors(crystal, wavelength),
                    "xy_px": frame.places(crystal),
                }
            )
    if not len(rows):
        nothing = f"{path}: no integrated reflection of any crystal; was it indexed?"
        raise InputError(unread[0] if unread else nothing)
    of_shots = shots.taken()
    return Unmerged.observed(
        **rows.taken(),
        cell=cell or gemmi.UnitCell(*np.median(of_shots["cell"], axis=0)),
        space_group=space_group,
        source=str(path),
        names=names,
        wavelength=float(np.mean(of_shots["wavelength"])),
        unread=tuple(unread),
    )


def excitation_errors(crystal: StreamCrystal, wavelength: float) -> np.ndarray:
    """(n,) ε_r = |s0 + A·h| − 1/λ, Å⁻¹, of a crystal's integrated reflections."""
    s = crystal.reflections.hkl @ crystal.A.T + np.array([0.0, 0.0, 1 / wavelength])
    return np.linalg.norm(s, axis=1) - 1 / wavelength


class LabFrame:
    """Positions of reflections in the lab frame, from the geometry of a stream if it has one."""

    def __init__(self, geometry: Geometry | None) -> None:
        self._source, self._numbers = "", dict[str, int]()
        if geometry is None:
            return
        detector = geometry.detector(0.0, np.nan)
        step = detector.pixel_size_mm[:, :, None] * np.stack([detector.fast, detector.slow], axis=1)
        self._source = geometry.source
        self._numbers = {p.name: k for k, p in enumerate(geometry.panels)}
        self._first = np.array([[p.fs_range[0], p.ss_range[0]] for p in geometry.panels])
        self._corner, self._step = detector.origin_mm[:, :2], step[:, :, :2]

    def places(self, crystal: StreamCrystal) -> np.ndarray:
        """(n, 2) lab x and y of a crystal's reflections, mm; NaN without a geometry."""
        r = crystal.reflections
        if not self._numbers:
            return np.full((len(r), 2), np.nan)
        try:
            which = np.fromiter(map(self._numbers.__getitem__, r.panel), int, len(r))
        except KeyError as unknown:
            raise InputError(
                f"{self._source}: no panel {unknown.args[0]}, but reflections on it"
            ) from None
        px, step = r.array_px - self._first[which], self._step[which]
        corner = self._corner[which] + np.array(crystal.shift_mm)
        return corner + px[:, :1] * step[:, 0] + px[:, 1:] * step[:, 1]


def cell_of_header(text: str) -> gemmi.UnitCell | None:
    """The cell, Å and degrees, in the text of a CrystFEL unit-cell file; None if it has none, or
    numbers that no cell has.
    """
    found = {}
    for line in text.splitlines():
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals and name in AXIS_NM:
            found[name] = value.partition(" ")
    try:
        numbers = [
            float(number) * (10.0 if unit.strip() == "nm" else 1.0)
            for number, _, unit in (found[k] for k in AXIS_NM)
        ]
        return cell_of(" ".join(map(repr, numbers)))
    except (ValueError, KeyError):  # of numbers, or of ``cell_of``
        return None
