"""Write a simulated run in the files of CrystFEL, dials.ssx_index or Jungfraujoch."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

import h5py
import numpy as np

from ..geometry.experiments import Experiments
from ..io.crystfel_geometry import HC_EV_ANGSTROM
from ..io.crystfel_stream import Chunk, IntegratedReflections, StreamCrystal
from ..io.crystfel_write import (
    cell_text,
    crystfel_frame,
    geometry_of,
    geometry_text,
    lattice_of,
    stream_lines,
)
from ..util.errors import InputError


class Layout(StrEnum):
    """The programs in whose files a simulated run can be written."""

    dials = "dials"
    ssx = "ssx"
    crystfel = "crystfel"
    jungfraujoch = "jungfraujoch"


def write_layout(layout: Layout, experiments: Experiments, out: Path) -> list[str]:
    """Write a run in another layout beside its own files; return the names of the new files."""
    if layout is Layout.crystfel:
        return [path.name for path in write_crystfel_layout(experiments, out)]
    if layout is Layout.jungfraujoch:
        return [write_jungfraujoch_layout(experiments, out).name]
    if layout is Layout.ssx:
        return [write_ssx_layout(experiments, out).name]
    return []


_NONE = np.zeros(0)
NOT_INTEGRATED = IntegratedReflections(
    np.zeros((0, 3), np.int32), _NONE, _NONE, _NONE, _NONE, np.zeros((0, 2)), np.zeros(0, object)
)


def write_crystfel_layout(experiments: Experiments, out: Path) -> tuple[Path, Path]:
    """``run.geom`` and ``run.stream`` of indexed stills, nothing integrated, beside their images.

    The images are frames of ``/entry/data/data``, of which panels are tiles.
    """
    first = experiments.stills[0]
    geometry = geometry_of(first.detector, first.beam, "/entry/data/data")
    text, turn = geometry_text(geometry), crystfel_frame(first.beam)
    lattice, centering, unique = lattice_of(first.crystal.space_group)
    chunks = []
    for n, still in enumerate(experiments.stills, start=1):
        crystal = StreamCrystal(
            A=turn @ still.crystal.A,
            lattice_type=lattice,
            centering=centering,
            unique_axis=unique,
            shift_mm=(0.0, 0.0),
            profile_radius=3e-4,
            resolution_limit=0.5,
            reflections=NOT_INTEGRATED,
        )
        chunks.append(
            Chunk(
                image_file=still.image_path.name,
                event=f"//{still.frame}",
                serial=n,
                photon_energy_ev=HC_EV_ANGSTROM / still.beam.wavelength,
                camera_length_m=geometry.camera_length_m.value,
                bandwidth=still.beam.bandwidth,
                crystals=(crystal,),
                line=0,
            )
        )
    cell = cell_text(first.crystal.cell, first.crystal.space_group)
    geom, stream = out / "run.geom", out / "run.stream"
    geom.write_text(text, encoding="utf-8")
    stream.write_text("\n".join(stream_lines(text, cell, chunks)) + "\n", encoding="utf-8")
    return geom, stream


def write_jungfraujoch_layout(experiments: Experiments, out: Path) -> Path:
    """``run_process.h5``: images linked, geometry, and the lattices where Jungfraujoch has them.

    One panel normal to a beam along +z.  Middles of pixels are whole numbers there.

    Raises:
        InputError: more than one panel.
    """
    first = experiments.stills[0]
    if (n := first.detector.n_panels) > 1:
        raise InputError(f"{experiments.path}: files of Jungfraujoch have one panel, not {n}")
    path = out / "run_process.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = h5py.ExternalLink(first.image_path.name, "/entry/data/data")
        detector = file.create_group("entry/instrument/detector")
        size = float(first.detector.pixel_size_mm[0, 0])
        corner = first.detector.origin_mm[0]
        detector["beam_center_x"] = -corner[0] / size - 0.5
        detector["beam_center_y"] = -corner[1] / size - 0.5
        detector["distance"] = corner[2] * 1e-3
        detector["x_pixel_size"] = detector["y_pixel_size"] = size * 1e-3
        detector["saturation_value"] = first.detector.trusted_range[0, 1]
        detector["underload_value"] = first.detector.trusted_range[0, 0]
        mask = "/entry/instrument/detector/pixel_mask"
        detector["pixel_mask"] = h5py.ExternalLink(first.image_path.name, mask)
        file["entry/instrument/beam/incident_wavelength"] = first.beam.wavelength
        file["entry/sample/space_group"] = first.crystal.space_group.hm
        file["entry/sample/unit_cell"] = first.crystal.cell.parameters
        rows = np.full((1 + max(s.frame for s in experiments.stills), 9), np.nan)
        for still in experiments.stills:
            rows[still.frame] = np.linalg.inv(still.crystal.A).ravel()
        file["entry/MX/latticeIndexed"] = rows
        file["entry/MX/imageIndexed"] = np.isfinite(rows[:, 0]).astype(np.uint8)
    return path


def write_ssx_layout(experiments: Experiments, out: Path) -> Path:
    """``integrated.expt``: all stills in one ``ImageSequence``, each with a scan of its frame, as
    ``dials.ssx_index`` writes them.
    """
    document = dict(experiments.document)
    frames = [still.frame for still in experiments.stills]
    document["imageset"] = [
        {
            "__id__": "ImageSequence",
            "template": experiments.stills[0].image_path.name,
            "single_file_indices": frames,
            **dict.fromkeys(("mask", "gain", "pedestal", "dx", "dy")),
            "params": {},
        }
    ]
    document["scan"] = [
        {
            "image_range": [frame + 1, frame + 1],
            "batch_offset": 0,
            "properties": {
                "exposure_time": [0.0],
                "epochs": [0.0],
                "oscillation": [0.0],
                "oscillation_width": [0.0],
            },
            "valid_image_ranges": {},
        }
        for frame in frames
    ]
    document["experiment"] = [
        {**entry, "imageset": 0, "scan": n} for n, entry in enumerate(document["experiment"])
    ]
    path = out / "integrated.expt"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return path
