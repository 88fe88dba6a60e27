"""A simulated run as users of other programs have theirs: CrystFEL's geometry and stream."""

from __future__ import annotations

from pathlib import Path

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

_NONE = np.zeros(0)
NOT_INTEGRATED = IntegratedReflections(
    np.zeros((0, 3), np.int32), _NONE, _NONE, _NONE, _NONE, np.zeros((0, 2)), np.zeros(0, object)
)


def write_crystfel_layout(experiments: Experiments, out: Path) -> tuple[Path, Path]:
    """``run.geom`` and ``run.stream`` of indexed stills, nothing integrated, beside their images.

    The images of one panel are frames of ``/entry/data/data``; of several, panels of a stack.
    """
    first = experiments.stills[0]
    axes = ("%", "ss", "fs") if first.detector.n_panels == 1 else ("%", "panel", "ss", "fs")
    geometry = geometry_of(first.detector, first.beam, "/entry/data/data", axes)
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
