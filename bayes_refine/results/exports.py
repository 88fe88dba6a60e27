"""Write files for other programs, from the results of a fit or a merge in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path

import gemmi
import numpy as np

from ..geometry.detector import ray_to_pixel
from ..geometry.experiments import Still
from ..geometry.miller import resolution
from ..io.crystfel_geometry import HC_EV_ANGSTROM
from ..io.crystfel_stream import Chunk, IntegratedReflections, StreamCrystal
from ..io.crystfel_write import (
    cell_text,
    crystfel_frame,
    geometry_of,
    geometry_text,
    lattice_of,
    stream_lines,
    write_hkl,
)
from ..io.dials_reflections import INTEGRATED_PROFILE, INTEGRATED_SUM, refl_bytes
from ..io.expt import read_experiments
from ..io.unmerged import Unmerged
from ..io.unmerged_mtz import read_unmerged
from ..util.errors import InputError

PREDICTED = 1  # bit of DIALS's flags
DELPSI_SIGN = -1.0  # DIALS's Δψ is positive where ε_r is negative
BOX = 5  # px from the centre of a spot to the edge of the box that is written


class Export(StrEnum):
    """Formats that ``--write`` knows."""

    refl = "refl"
    stream = "stream"
    hkl = "hkl"
    mmcif = "mmcif"
    sca = "sca"
    shelx = "shelx"
    xds = "xds"


def export(folder: str | Path, formats: Iterable[Export]) -> list[Path]:
    """Write the results in ``folder`` for other programs, into the same folder.

    ``refl``: ``refined.refl``, which belongs to ``refined.expt`` (DIALS). ``stream``:
    ``refined.stream`` and ``refined.geom`` (CrystFEL). ``hkl``: ``merged.hkl``, ``half1.hkl``,
    ``half2.hkl`` (CrystFEL). ``mmcif``, ``sca``, ``shelx``, ``xds``: the merged intensities
    ``merged.cif``, ``merged.sca``, ``merged_shelx.hkl``, ``merged_XDS_ASCII.HKL``.

    Returns:
        The new files.

    Raises:
        InputError: the folder lacks a file that a format needs.
    """
    folder = Path(folder)
    return [path for kind in dict.fromkeys(formats) for path in _WRITERS[kind](folder)]


# -- merged intensities ---------------------------------------------------------------------


def _merged(folder: Path, name: str = "merged.mtz") -> tuple[gemmi.Mtz, np.ndarray, dict]:
    """The MTZ, and (n, 3) hkl and columns I, SIGI, N of the rows that have an intensity."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of a fit or a merge")
    mtz = gemmi.read_mtz_file(str(path))
    column = {label: np.array(mtz.column_with_label(label)) for label in mtz.column_labels()}
    keep = np.isfinite(column["IMEAN"]) & np.isfinite(column["SIGIMEAN"])
    n = column.get("N", np.ones(len(keep)))
    hkl = mtz.make_miller_array()[keep]
    return mtz, hkl, {"I": column["IMEAN"][keep], "SIGI": column["SIGIMEAN"][keep], "N": n[keep]}


def _write_hkl(folder: Path) -> Iterator[Path]:
    for name in ("merged", "half1", "half2"):
        mtz, hkl, columns = _merged(folder, f"{name}.mtz")
        write_hkl(folder / f"{name}.hkl", hkl, columns, mtz.spacegroup)
        yield folder / f"{name}.hkl"


def _write_mmcif(folder: Path) -> Iterator[Path]:
    mtz, _, _ = _merged(folder)
    text = gemmi.MtzToCif().write_cif_to_string(mtz)
    yield _text(folder / "merged.cif", text)


def _write_sca(folder: Path) -> Iterator[Path]:
    """Write SCALEPACK's merged format: cell and space group, then h k l I σ in F8.1."""
    mtz, hkl, columns = _merged(folder)
    factor = _fitting(columns, 99999.9)
    cell = "".join(f"{x:10.3f}" for x in mtz.cell.parameters)
    name = mtz.spacegroup.short_name().lower()
    rows = zip(hkl, columns["I"] * factor, columns["SIGI"] * factor, strict=True)
    lines = [f"{1:5d}", f"{-987:5d}", f"{cell} {name}"]
    lines += [_indices(h, 4) + f"{i:8.1f}{s:8.1f}" for h, i, s in rows]
    yield _text(folder / "merged.sca", "\n".join(lines) + "\n")


def _write_shelx(folder: Path) -> Iterator[Path]:
    """Write SHELX's HKLF 4: 3I4, 2F8.2; a reflection 0 0 0 ends the list."""
    _, hkl, columns = _merged(folder)
    factor = _fitting(columns, 9999.99)
    rows = zip(hkl, columns["I"] * factor, columns["SIGI"] * factor, strict=True)
    lines = [_indices(h, 4) + f"{i:8.2f}{s:8.2f}" for h, i, s in rows]
    lines.append(f"{0:4d}{0:4d}{0:4d}{0.0:8.2f}{0.0:8.2f}")
    yield _text(folder / "merged_shelx.hkl", "\n".join(lines) + "\n")


def _write_xds(folder: Path) -> Iterator[Path]:
    mtz, hkl, columns = _merged(folder)
    cell = " ".join(f"{x:.3f}" for x in mtz.cell.parameters)
    lines = [
        "!FORMAT=XDS_ASCII    MERGE=TRUE    FRIEDEL'S_LAW=TRUE",
        f"!SPACE_GROUP_NUMBER= {mtz.spacegroup.number}",
        f"!UNIT_CELL_CONSTANTS= {cell}",
        "!NUMBER_OF_ITEMS_IN_EACH_DATA_RECORD=5",
        *("!ITEM_H=1", "!ITEM_K=2", "!ITEM_L=3", "!ITEM_IOBS=4", "!ITEM_SIGMA(IOBS)=5"),
        "!END_OF_HEADER",
    ]
    rows = zip(hkl, columns["I"], columns["SIGI"], strict=True)
    lines += [_indices(h, 6) + f" {i:.4E} {s:.4E}" for h, i, s in rows]
    lines.append("!END_OF_DATA")
    yield _text(folder / "merged_XDS_ASCII.HKL", "\n".join(lines) + "\n")


def _indices(hkl: np.ndarray, width: int) -> str:
    return "".join(f"{int(x):{width}d}" for x in hkl)


def _fitting(columns: dict[str, np.ndarray], largest: float) -> float:
    """The power of ten by which all numbers fit into the width of a fixed format."""
    top = max(float(np.max(np.abs(columns[name]), initial=0.0)) for name in ("I", "SIGI"))
    return 1.0 if top <= largest else float(10.0 ** np.floor(np.log10(largest / top)))


# -- observations ---------------------------------------------------------------------------


def _run(folder: Path) -> tuple[tuple[Still, ...], Unmerged]:
    for name in ("refined.expt", "unmerged.mtz"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; give the folder of a fit")
    return read_experiments(folder / "refined.expt").stills, read_unmerged(folder / "unmerged.mtz")


def _of_stills(
    stills: tuple[Still, ...], data: Unmerged
) -> Iterator[tuple[int, Still, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For each still its number, the still, and of its n rows in the data: row (n,), s1 (n, 3) Å⁻¹,
    panel (n,), centre (n, 2) px.
    """
    for i, still in enumerate(stills):
        rows = np.flatnonzero(data.batch == i + 1)
        s1 = still.beam.s0 + data.hkl[rows] @ still.crystal.A.T
        panel, xy = ray_to_pixel(still.detector, s1 / np.linalg.norm(s1, axis=1)[:, None])
        hit = panel >= 0
        yield i, still, rows[hit], s1[hit], panel[hit], xy[hit]


def _write_refl(folder: Path) -> Iterator[Path]:
    """Write predictions, raw and scaled J, with the identifiers of ``refined.expt``."""
    stills, data = _run(folder)
    parts: list[dict[str, np.ndarray]] = []
    for i, still, rows, s1, panel, xy in _of_stills(stills, data):
        n = len(rows)
        hkl, J, sigma = data.hkl[rows], data.J[rows], data.sigma[rows]
        q = np.linalg.norm(hkl @ still.crystal.A.T, axis=1)
        s0 = 1 / still.beam.wavelength
        excitation = np.linalg.norm(s1, axis=1) - s0
        cos_theta = np.sqrt(np.maximum(1 - (q / (2 * s0)) ** 2, 1e-12))
        z = np.full(n, still.frame + 0.5)
        corner = np.floor(xy).astype(int)
        spans = [corner[:, :1] - BOX, corner[:, :1] + BOX + 1]
        spans += [corner[:, 1:] - BOX, corner[:, 1:] + BOX + 1]
        frames = np.tile([still.frame, still.frame + 1], (n, 1))
        parts.append(
            {
                "miller_index": hkl,
                "id": np.full(n, i),
                "imageset_id": np.full(n, i),
                "panel": panel,
                "flags": np.full(n, PREDICTED | INTEGRATED_SUM | INTEGRATED_PROFILE),
                "s1": s1 / np.linalg.norm(s1, axis=1)[:, None] * s0,
                "bbox": np.hstack([*spans, frames]),
                "d": 1 / q,
                "delpsical.rad": DELPSI_SIGN * excitation / (q * cos_theta),
                "xyzcal.px": np.column_stack([xy, z]),
                "xyzcal.mm": np.column_stack([xy * still.detector.pixel_size_mm[panel], 0 * z]),
                "xyzobs.px.value": np.column_stack([xy, z]),
                "xyzobs.px.variance": np.zeros((n, 3)),
                "intensity.sum.value": J,
                "intensity.sum.variance": sigma**2,
                "intensity.prf.value": J,
                "intensity.prf.variance": sigma**2,
                "background.mean": np.zeros(n),
                "lp": np.ones(n),
                "qe": np.ones(n),
            }
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names = {i: still.identifier for i, still in enumerate(stills)}
    path = folder / "refined.refl"
    path.write_bytes(refl_bytes(columns, names))
    yield path


def _write_stream(folder: Path) -> Iterator[Path]:
    stills, data = _run(folder)
    first = stills[0]
    several = first.detector.n_panels > 1 and not any(map(any, first.detector.raw_image_offset))
    axes = ("%", "panel", "ss", "fs") if several else ("%", "ss", "fs")
    geometry = geometry_of(first.detector, first.beam, "/entry/data/data", axes)
    text = geometry_text(geometry)
    cell = cell_text(data.cell, data.space_group)
    geom, stream = _text(folder / "refined.geom", text), folder / "refined.stream"
    with stream.open("w", encoding="utf-8") as file:
        chunks = _chunks(stills, data, geometry.camera_length_m.value)
        file.writelines(f"{line}\n" for line in stream_lines(text, cell, chunks))
    yield from (geom, stream)


def _chunks(stills: tuple[Still, ...], data: Unmerged, camera_length_m: float) -> Iterator[Chunk]:
    lattice, centering, unique = lattice_of(data.space_group)
    for i, still, rows, s1, panel, xy in _of_stills(stills, data):
        turn = crystfel_frame(still.beam)
        first = np.array(still.detector.raw_image_offset or [(0, 0)] * still.detector.n_panels)
        hkl = data.hkl[rows]
        excitation = np.linalg.norm(s1, axis=1) - 1 / still.beam.wavelength
        width = float(np.std(excitation)) if len(rows) > 1 else 3e-4
        top = 1 / resolution(hkl, still.crystal.cell).min() if len(rows) else 0.5
        zero = np.zeros(len(rows))
        table = IntegratedReflections(
            hkl=hkl,
            intensity=data.J[rows],
            sigma=data.sigma[rows],
            peak=zero,
            background=zero,
            array_px=xy + first[panel],
            panel=np.array([f"p{p}" for p in panel], object),
        )
        crystal = StreamCrystal(
            A=turn @ still.crystal.A,
            lattice_type=lattice,
            centering=centering,
            unique_axis=unique,
            shift_mm=(0.0, 0.0),
            profile_radius=width,
            resolution_limit=float(top),
            reflections=table,
        )
        yield Chunk(
            image_file=str(still.image_path),
            event=f"//{still.frame}",
            serial=i + 1,
            photon_energy_ev=HC_EV_ANGSTROM / still.beam.wavelength,
            camera_length_m=camera_length_m,
            bandwidth=still.beam.bandwidth,
            crystals=(crystal,) if len(rows) else (),
            line=0,
        )


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


_WRITERS: dict[Export, Callable[[Path], Iterator[Path]]] = {
    Export.refl: _write_refl,
    Export.stream: _write_stream,
    Export.hkl: _write_hkl,
    Export.mmcif: _write_mmcif,
    Export.sca: _write_sca,
    Export.shelx: _write_shelx,
    Export.xds: _write_xds,
}
