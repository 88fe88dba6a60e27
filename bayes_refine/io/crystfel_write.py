"""Write files of CrystFEL: geometry, stream (version 2.3), reflection list (version 2.0).

In the lab frame of CrystFEL z points along the beam and y up, and the frame is right-handed.
:func:`crystfel_frame` turns vectors of an experiment's frame into that of CrystFEL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import gemmi
import numpy as np

from ..geometry.crystal import cell_from_real_axes
from ..geometry.detector import Beam, Detector
from .crystfel_geometry import HC_EV_ANGSTROM, Geometry, Panel, Quantity
from .crystfel_stream import FIRST_LINE, Chunk, IntegratedReflections, StreamCrystal

SYSTEMS = {
    **{"triclinic": "triclinic", "monoclinic": "monoclinic", "orthorhombic": "orthorhombic"},
    **{"tetragonal": "tetragonal", "hexagonal": "hexagonal", "cubic": "cubic"},
    "trigonal": "hexagonal",  # gemmi has hexagonal axes unless the group is R on its own axes
}
MONOCHROMATIC = 1e-8  # CrystFEL's bandwidth of a monochromatic beam; partialator cannot take 0
AXIS_DECIMALS = 8


def crystfel_frame(beam: Beam) -> np.ndarray:
    """(3, 3) rotation from the experiment's lab frame to that of CrystFEL.

    z is the direction of the beam; y is as near as possible to the experiment's y (to its x, if
    the beam runs along y).
    """
    z = beam.s0_direction / np.linalg.norm(beam.s0_direction)
    up = np.array([0.0, 1.0, 0.0]) if abs(z[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    y = up - (up @ z) * z
    y /= np.linalg.norm(y)
    return np.stack([np.cross(y, z), y, z])


def geometry_of(
    detector: Detector, beam: Beam, data: str = "/entry/data/data", axes: tuple[str, ...] = ()
) -> Geometry:
    """The CrystFEL geometry of a detector.

    Each panel has its place in one array: its ``raw_image_offset``, or, where the detector has no
    offsets, one panel below the other.

    Args:
        data: path of the array in the image file. axes: of the array, ("%", "ss", "fs") by default;
            with "panel" among them each panel is an index along that axis.
    """
    turn, axes = crystfel_frame(beam), axes or ("%", "ss", "fs")
    origin, fast, slow = (v @ turn.T for v in (detector.origin_mm, detector.fast, detector.slow))
    distance = float(origin[:, 2].mean()) * 1e-3
    below = np.cumsum([0, *detector.shape[:-1, 0]])
    first = detector.raw_image_offset or tuple((0, int(y)) for y in below)
    panels = []
    for p in range(detector.n_panels):
        ny, nx = (int(n) for n in detector.shape[p])
        pitch, stretch = detector.pixel_size_mm[p, 0], detector.pixel_size_mm[p, 1]
        x, y = (0, 0) if "panel" in axes else first[p]
        panels.append(
            Panel(
                name=f"p{p}",
                corner_px=(origin[p, 0] / pitch, origin[p, 1] / pitch),
                fs=tuple(fast[p]),  # type: ignore[arg-type]
                ss=tuple(slow[p] * stretch / pitch),  # type: ignore[arg-type]
                per_metre=1e3 / pitch,
                offset_m=origin[p, 2] * 1e-3 - distance,
                fs_range=(x, x + nx),
                ss_range=(y, y + ny),
                data=data,
                dims=tuple((k, str(p) if a == "panel" else a) for k, a in enumerate(axes)),
                adu_per_photon=float(detector.gain[p]),
                more=float(detector.trusted_range[p, 1]),
                less=float(detector.trusted_range[p, 0]),
            )
        )
    return Geometry(
        panels=tuple(panels),
        camera_length_m=Quantity(distance),
        wavelength=Quantity(HC_EV_ANGSTROM / beam.wavelength),
        is_energy=True,
        bandwidth=beam.bandwidth,
        shift_m=(Quantity(0.0), Quantity(0.0)),
        bad=(),
        source="",
        groups=detector.groups,
    )


def geometry_text(geometry: Geometry) -> str:
    """Text of a ``.geom`` file, for a geometry whose camera length and photon energy are known."""
    lines = [
        f"photon_energy = {geometry.wavelength.value:.6f} eV",
        f"clen = {geometry.camera_length_m.value:.9f} m",
    ]
    if geometry.bandwidth > 0:
        lines.append(f"bandwidth = {geometry.bandwidth:.4e}")
    if kinds := sorted(set(geometry.groups)):
        for k in kinds:
            pairs = zip(geometry.panels, geometry.groups, strict=True)
            lines.append(f"rigid_group_g{k} = {','.join(p.name for p, g in pairs if g == k)}")
        lines.append(f"rigid_group_collection_moved = {','.join(f'g{k}' for k in kinds)}")
    for p in geometry.panels:
        numbers = {
            "data": p.data,
            **{f"dim{k}": axis for k, axis in p.dims},
            "min_fs": p.fs_range[0],
            "max_fs": p.fs_range[1] - 1,
            "min_ss": p.ss_range[0],
            "max_ss": p.ss_range[1] - 1,
            "res": f"{p.per_metre:.6f}",
            "corner_x": f"{p.corner_px[0]:.6f}",
            "corner_y": f"{p.corner_px[1]:.6f}",
            "coffset": f"{p.offset_m:.9f}",
            "fs": _direction(p.fs),
            "ss": _direction(p.ss),
            "adu_per_photon": f"{p.adu_per_photon:.6g}",
        }
        if np.isfinite(p.more):
            numbers["flag_morethan"] = f"{p.more:.9g}"
        if np.isfinite(p.less):
            numbers["flag_lessthan"] = f"{p.less:.9g}"
        lines += ["", *(f"{p.name}/{key} = {value}" for key, value in numbers.items())]
    return "\n".join(lines) + "\n"


def _direction(v: Iterable[float]) -> str:
    return " ".join(f"{x:+.{AXIS_DECIMALS}f}{axis}" for x, axis in zip(v, "xyz", strict=True))


def cell_text(cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup) -> str:
    """Text of a CrystFEL unit-cell file."""
    lattice, centering, unique = lattice_of(space_group)
    lines = ["CrystFEL unit cell file version 1.0", "", f"lattice_type = {lattice}"]
    lines += [f"unique_axis = {unique}"] if unique else []
    lines += [f"centering = {centering}"]
    lines += [f"{n} = {x:.4f} A" for n, x in zip("abc", cell.parameters[:3], strict=True)]
    lines += [
        f"{n} = {x:.4f} deg" for n, x in zip(("al", "be", "ga"), cell.parameters[3:], strict=True)
    ]
    return "\n".join(lines) + "\n"


def lattice_of(space_group: gemmi.SpaceGroup) -> tuple[str, str, str]:
    """CrystFEL's lattice type, centring and unique axis ("" if there is none)."""
    lattice = SYSTEMS[space_group.crystal_system_str()]
    centering = space_group.hm[0]
    if space_group.ext == "H":
        centering = "H"  # rhombohedral lattice on hexagonal axes
    elif centering == "R":
        return "rhombohedral", "R", ""
    unique = {"tetragonal": "c", "hexagonal": "c"}.get(lattice, "")
    if lattice == "monoclinic":
        unique = (space_group.qualifier or "b").strip("-")[0]
    return lattice, centering, unique


def stream_lines(
    geometry: str, cell: str, chunks: Iterable[Chunk], command: str = "bayes-refine"
) -> Iterator[str]:
    """The lines of a stream: the header, then each chunk."""
    yield f"{FIRST_LINE}2.3"
    yield "Generated by bayes-refine"
    yield command
    yield "Indexing methods selected: none"
    yield from _section("geometry file", geometry)
    yield from _section("unit cell", cell)
    for serial, chunk in enumerate(chunks, start=1):
        yield from _chunk_lines(chunk, serial)


def _section(what: str, text: str) -> Iterator[str]:
    yield f"----- Begin {what} -----"
    yield text.rstrip("\n")
    yield f"----- End {what} -----"


def _chunk_lines(chunk: Chunk, serial: int) -> Iterator[str]:
    yield "----- Begin chunk -----"
    yield f"Image filename: {chunk.image_file}"
    if chunk.event:
        yield f"Event: {chunk.event}"
    yield f"Image serial number: {chunk.serial or serial}"
    yield "hit = 1"
    yield f"indexed_by = {'file' if chunk.crystals else 'none'}"
    yield f"photon_energy_eV = {chunk.photon_energy_ev:.6f}"
    yield "beam_divergence = 0.00e+00 rad"
    bandwidth = max(float(np.nan_to_num(chunk.bandwidth)), MONOCHROMATIC)
    yield f"beam_bandwidth = {bandwidth:.2e} (fraction)"
    yield f"average_camera_length = {chunk.camera_length_m:.6f} m"
    yield "num_peaks = 0"
    yield "peak_resolution = 0.000000 nm^-1 or inf A"
    yield "Peaks from peak search"
    yield "  fs/px   ss/px (1/d)/nm^-1   Intensity  Panel"
    yield "End of peak list"
    for crystal in chunk.crystals:
        yield from _crystal_lines(crystal)
    yield "----- End chunk -----"


def _crystal_lines(crystal: StreamCrystal) -> Iterator[str]:
    a, b, c, *angles = cell_from_real_axes(np.linalg.inv(crystal.A)).parameters
    lengths = " ".join(f"{x / 10:.5f}" for x in (a, b, c))
    yield "--- Begin crystal"
    yield f"Cell parameters {lengths} nm, {' '.join(f'{x:.5f}' for x in angles)} deg"
    for name, axis in zip("abc", crystal.A.T * 10, strict=True):
        yield f"{name}star = {axis[0]:+.10f} {axis[1]:+.10f} {axis[2]:+.10f} nm^-1"
    yield f"lattice_type = {crystal.lattice_type}"
    yield f"centering = {crystal.centering}"
    if crystal.unique_axis:
        yield f"unique_axis = {crystal.unique_axis}"
    yield f"profile_radius = {crystal.profile_radius * 10:.5f} nm^-1"
    yield f"predict_refine/det_shift x = {crystal.shift_mm[0]:.3f} y = {crystal.shift_mm[1]:.3f} mm"
    limit = crystal.resolution_limit * 10
    yield f"diffraction_resolution_limit = {limit:.2f} nm^-1 or {10 / limit:.2f} A"
    r = crystal.reflections
    yield f"num_reflections = {len(r)}"
    yield "num_saturated_reflections = 0"
    yield "num_implausible_reflections = 0"
    yield "Reflections measured after indexing"
    yield "   h    k    l          I   sigma(I)       peak background  fs/px  ss/px panel"
    yield from _table_lines(r)
    yield "End of reflections"
    yield "--- End crystal"


def _table_lines(r: IntegratedReflections) -> Iterator[str]:
    columns = (*r.hkl.T, r.intensity, r.sigma, r.peak, r.background, *r.array_px.T, r.panel)
    for h, k, l, i, s, peak, bg, x, y, panel in zip(*columns, strict=True):  # noqa: E741
        yield (
            f"{h:4d} {k:4d} {l:4d} {i:10.2f} {s:10.2f} {peak:10.2f} {bg:10.2f}"
            f" {x:6.1f} {y:6.1f} {panel}"
        )


def write_hkl(
    path: str | Path, hkl: np.ndarray, columns: dict[str, np.ndarray], space_group: gemmi.SpaceGroup
) -> None:
    """Write a CrystFEL reflection list, version 2.0.

    Args:
        hkl: (n, 3) in the asymmetric unit. columns: (n,) "I", "SIGI", "N"; rows without a finite
            I are left out.
        space_group: its Laue class becomes the symmetry of the list.
    """
    keep = np.isfinite(columns["I"]) & np.isfinite(columns["SIGI"])
    rows = zip(hkl[keep], *(np.asarray(columns[k])[keep] for k in ("I", "SIGI", "N")), strict=True)
    lines = [
        "CrystFEL reflection list version 2.0",
        f"Symmetry: {laue_symbol(space_group)}",
        "   h    k    l          I    phase   sigma(I)   nmeas",
        *(
            f"{h[0]:4d} {h[1]:4d} {h[2]:4d} {i:10.2f} {'-':>8} {s:10.2f} {int(n):7d}"
            for h, i, s, n in rows
        ),
        "End of reflections",
    ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def laue_symbol(space_group: gemmi.SpaceGroup) -> str:
    """CrystFEL's name of a Laue class; a unique axis other than c is part of the name."""
    symbol = space_group.laue_str()
    lattice, _, unique = lattice_of(space_group)
    if lattice == "rhombohedral":
        return symbol + "_R"
    if symbol.startswith("-3"):
        third_alone = len(parts := space_group.hm.split()) == 4 and parts[2] == "1"
        return {"-3": "-3", "-3m": "-31m" if third_alone else "-3m1"}[symbol] + "_H"
    return f"{symbol}_ua{unique}" if symbol == "2/m" else symbol
