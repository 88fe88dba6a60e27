"""Integrated stills of a CrystFEL stream, as ``merge`` takes them."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np

from ..geometry.crystal import cell_from_real_axes
from ..util.errors import InputError
from .crystfel_geometry import HC_EV_ANGSTROM, Geometry
from .crystfel_geometry_text import parse_geometry
from .crystfel_stream import Chunk, StreamCrystal, read_stream
from .unmerged import Unmerged

AXIS_NM = {"a": "a", "b": "b", "c": "c", "al": "alpha", "be": "beta", "ga": "gamma"}


def unmerged_of_stream(
    path: str | Path,
    space_group: gemmi.SpaceGroup,
    cell: gemmi.UnitCell | None = None,
) -> Unmerged:
    """Every integrated reflection of every crystal of a stream, an image a crystal.

    ε_r = |s0 + A·h| − 1/λ from each crystal's own axes and each image's own photon energy;
    positions are in the laboratory frame, mm, where the stream has its geometry.

    Args:
        space_group: a stream has none: CrystFEL merges by point group.
        cell: Å; None for the median of the crystals'.

    Raises:
        InputError: no stream, damaged, no crystal, or no photon energy.
    """
    header, chunks = read_stream(path)
    geometry = parse_geometry(header.geometry, f"{path} (geometry)") if header.geometry else None
    parts: list[tuple[np.ndarray, ...]] = []
    cells: list[tuple[float, ...]] = []
    wavelengths: list[float] = []
    names: list[str] = []
    for chunk in chunks:
        if not chunk.crystals:
            continue
        if not chunk.photon_energy_ev > 0:
            raise InputError(f"{path}, line {chunk.line}: no photon_energy_eV for this image")
        wavelength = HC_EV_ANGSTROM / chunk.photon_energy_ev
        for k, crystal in enumerate(chunk.crystals):
            excitation = excitation_errors(crystal, wavelength)
            r = crystal.reflections
            xy = lab_mm(geometry, chunk, crystal)
            parts.append((r.hkl, r.intensity, r.sigma, np.full(len(r), len(names)), excitation, xy))
            names.append(chunk.name + (f" crystal {k + 1}" if len(chunk.crystals) > 1 else ""))
            cells.append(cell_from_real_axes(np.linalg.inv(crystal.A)).parameters)
            wavelengths.append(wavelength)
    if not sum(len(p[0]) for p in parts):
        raise InputError(f"{path}: no integrated reflection of any crystal; was it indexed?")
    hkl, intensity, sigma, image, excitation, xy = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return Unmerged.observed(
        hkl=hkl,
        intensity=intensity,
        sigma=sigma,
        batch=image + 1,
        excitation_error=excitation,
        xy_px=xy,
        cell=cell or gemmi.UnitCell(*np.median(cells, axis=0)),
        space_group=space_group,
        source=str(path),
        wavelength=float(np.mean(wavelengths)),
    )


def excitation_errors(crystal: StreamCrystal, wavelength: float) -> np.ndarray:
    """(n,) ε_r = |s0 + A·h| − 1/λ, Å⁻¹, of a crystal's integrated reflections."""
    s = crystal.reflections.hkl @ crystal.A.T + np.array([0.0, 0.0, 1 / wavelength])
    return np.linalg.norm(s, axis=1) - 1 / wavelength


def lab_mm(geometry: Geometry | None, chunk: Chunk, crystal: StreamCrystal) -> np.ndarray:
    """(n, 2) places of a crystal's reflections, laboratory x and y, mm; NaN without a geometry."""
    r = crystal.reflections
    if geometry is None:
        return np.full((len(r), 2), np.nan)
    detector = geometry.detector(0.0, chunk.photon_energy_ev, crystal.shift_mm)
    names = [p.name for p in geometry.panels]
    if unknown := set(r.panel) - set(names):
        raise InputError(f"{geometry.source}: no panel {min(unknown)}, but reflections on it")
    which = np.array([names.index(n) for n in r.panel], int)
    first = np.array([[p.fs_range[0], p.ss_range[0]] for p in geometry.panels])
    mm = (r.array_px - first[which]) * detector.pixel_size_mm[which]
    lab = detector.origin_mm[which] + mm[:, :1] * detector.fast[which]
    return (lab + mm[:, 1:] * detector.slow[which])[:, :2]


def cell_of_header(text: str) -> gemmi.UnitCell | None:
    """The cell, Å and degrees, of a CrystFEL unit-cell file; None where the text has none."""
    found = {}
    for line in text.splitlines():
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals and name in AXIS_NM:
            number, _, unit = value.partition(" ")
            found[name] = float(number) * (10.0 if unit.strip() == "nm" else 1.0)
    return gemmi.UnitCell(*(found[k] for k in AXIS_NM)) if set(found) == set(AXIS_NM) else None
