"""A simulated run on disk: images, indexed geometry, truth and reference."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gemmi
import h5py
import numpy as np

from ..geometry.crystal import Crystal, refined_crystal, space_group_from_hall
from ..io.mtz import save_mtz
from ..util.errors import InputError
from ..util.folder import all_or_none, prepare_folder
from ..util.progress import SILENT, Listener
from ..util.sink import sink_for
from .nxmx import image_dataset, one_array, write_header
from .pixels import background_photons, simulate_image
from .spots import SpotsOf, predict_spots
from .truth import SimulatedTruth, Simulation, TrueIntensities, draw_truth, square_detector

FILES = ("master.h5", "indexed.expt", "reference.mtz", "truth.h5")
RECORD = "simulation.json"


def simulate_run(
    simulation: Simulation,
    out_dir: str | Path,
    progress: Listener = SILENT,
    spots_of: SpotsOf = predict_spots,
) -> Path:
    """Simulate a run and write it: images, indexed geometry, truth and reference.

    Writes ``master.h5`` (NXmx; images (N, height, width), of which four panels are tiles),
    ``indexed.expt`` (with the errors of indexing), ``truth.h5`` and ``reference.mtz`` (F, IREF):
    all or none of them, with ``simulation.json``, by which they are known.  Files of the same names
    that no simulation wrote stay.

        path = simulate_run(Simulation(n_images=8, seed=3), "run")  # run/indexed.expt

    Args:
        progress: updated after each image.
        spots_of: what is on an image, for physics other than ``predict_spots``.

    Returns:
        The path of ``indexed.expt``.

    Raises:
        InputError: a file is in the way, or the folder cannot be written.
    """
    out = prepare_folder(out_dir)
    refuse_files_of_others(out)
    rng = np.random.default_rng(simulation.seed)
    truth = draw_truth(simulation, rng=rng)
    with all_or_none(out, last=RECORD) as work:
        _write_reference(simulation, truth.reference, work / "reference.mtz")
        _write_truth(simulation, truth, work / "truth.h5")
        _write_images(simulation, truth, work / "master.h5", progress, spots_of, rng=rng)
        document = _indexed_document(simulation, truth, "master.h5")
        (work / "indexed.expt").write_text(json.dumps(document, indent=1))
        record = {"simulation": asdict(simulation), "files": {n: _mark(work / n) for n in FILES}}
        (work / RECORD).write_text(json.dumps(record, indent=1))
    return out / "indexed.expt"


def refuse_files_of_others(out: Path) -> None:
    """Refuse to overwrite a file that no simulation wrote, or that was changed since."""
    try:
        ours = json.loads((out / RECORD).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = {}
    for name in FILES:
        if (out / name).exists() and _mark(out / name) != ours.get(name):
            raise InputError(
                f"{out / name} exists and no simulation wrote it, or it was changed since: "
                "it is not overwritten; choose another --out"
            )


def _mark(path: Path) -> list[int]:
    """Size and time of writing (ns) of a file, which tell it from others."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _write_images(
    simulation: Simulation,
    truth: SimulatedTruth,
    path: Path,
    progress: Listener,
    spots_of: SpotsOf,
    *,
    rng: np.random.Generator,
) -> None:
    n = simulation.n_images
    indexed = square_detector(simulation, *_indexed_geometry(simulation))
    with sink_for(path) as sink, h5py.File(sink, "w") as file:
        bad = one_array(indexed, truth.bad, True)
        write_header(file, indexed, truth.beam, bad, simulation.saturation)
        data = image_dataset(file, (n, *bad.shape), simulation.dtype)
        for i in range(n):
            sink.check()
            counts, _ = simulate_image(simulation, truth, i, spots_of, rng=rng)
            data[i] = one_array(indexed, counts, 0)
            progress.update((i + 1) / n, f"simulated image {i + 1} of {n}")


def _write_truth(simulation: Simulation, truth: SimulatedTruth, path: Path) -> None:
    with sink_for(path) as sink, h5py.File(sink, "w") as file:
        for name in ("A", "G", "B", "rotation_mrad", "strain"):
            file[name] = getattr(truth, name)
        for name in ("R0", "R1", "mosaic_rad"):
            file[name] = getattr(simulation, name)
        file["distance_mm"] = simulation.distance_mm
        file["beam_center_px"] = simulation.beam_center_px
        file["background"] = background_photons(simulation, truth.detector)
        for name, value in asdict(simulation).items():
            file.attrs[name] = value


def _write_reference(simulation: Simulation, reference: TrueIntensities, path: Path) -> None:
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = space_group_from_hall(simulation.hall)
    mtz.set_cell_for_all(gemmi.UnitCell(*simulation.cell))
    mtz.add_dataset("reference")
    mtz.add_column("F", "F")
    mtz.add_column("IREF", "J")
    columns = [reference.hkl, np.sqrt(reference.intensity), reference.intensity]
    save_mtz(mtz, path, np.column_stack(columns))


def _indexed_geometry(simulation: Simulation) -> tuple[float, np.ndarray]:
    center = simulation.beam_center_px + np.asarray(simulation.beam_center_error_px)
    return simulation.distance_mm + simulation.distance_error_mm, center


def _indexed_document(
    simulation: Simulation, truth: SimulatedTruth, image_file: str
) -> dict[str, Any]:
    """The run as indexed, as a DIALS ``.expt`` document."""
    detector = square_detector(simulation, *_indexed_geometry(simulation))
    height, width = (int(v) for v in detector.shape[0])

    def panel(
        name: str, kind: str, origin: list[float], offset: tuple[int, int] = (0, 0)
    ) -> dict[str, Any]:
        return {
            "name": name,
            "type": kind,
            "fast_axis": [1.0, 0.0, 0.0],
            "slow_axis": [0.0, 1.0, 0.0],
            "origin": origin,
            "raw_image_offset": list(offset),
            "image_size": [width, height] if kind else [0, 0],
            "pixel_size": [simulation.pixel_size_mm] * 2 if kind else [0.0, 0.0],
            "trusted_range": detector.trusted_range[0].tolist() if kind else [0.0, 0.0],
            "thickness": 0.0,
            "material": "",
            "mu": 0.0,
            "identifier": "",
            "mask": [],
            "gain": simulation.gain if kind else 1.0,
            "pedestal": 0.0,
            "px_mm_strategy": {"type": "SimplePxMmStrategy"},
        }

    places = zip(detector.origin_mm.tolist(), detector.raw_image_offset, strict=True)
    panels = [panel(f"Panel{i}", "SENSOR_PAD", *place) for i, place in enumerate(places)]
    hierarchy = panel("", "", [0.0, 0.0, 0.0])
    hierarchy["children"] = [{"panel": i} for i in range(len(panels))]
    crystals = []
    for A, rotation, strain in zip(truth.A, truth.rotation_mrad, truth.strain, strict=True):
        indexed = refined_crystal(Crystal(A=A, hall=simulation.hall), rotation, strain)
        axes = zip("abc", np.linalg.inv(indexed.A).tolist(), strict=True)
        crystals.append(
            {"__id__": "crystal"}
            | {f"real_space_{name}": axis for name, axis in axes}
            | {"space_group_hall_symbol": simulation.hall}
        )
    beam = {
        "__id__": "monochromatic",
        "direction": (-truth.beam.s0_direction).tolist(),  # dxtbx: towards the source
        "wavelength": simulation.wavelength,
        "divergence": 0.0,
        "sigma_divergence": 0.0,
        "polarization_normal": truth.beam.polarization_normal.tolist(),
        "polarization_fraction": simulation.polarization_fraction,
        "flux": 0.0,
        "transmission": 1.0,
        "probe": "x-ray",
    }
    images = range(simulation.n_images)
    empty: dict[str, Any] = {
        "mask": None,
        "gain": None,
        "pedestal": None,
        "dx": None,
        "dy": None,
        "params": {},
    }
    return {
        "__id__": "ExperimentList",
        "experiment": [
            {"__id__": "Experiment", "identifier": f"simulated-{i:04d}"}
            | {"beam": 0, "detector": 0, "crystal": i, "imageset": i}
            for i in images
        ],
        "imageset": [
            {"__id__": "ImageSet", "images": [image_file], "single_file_indices": [i]} | empty
            for i in images
        ],
        "beam": [beam],
        "detector": [{"panels": panels, "hierarchy": hierarchy}],
        "goniometer": [],
        "scan": [],
        "crystal": crystals,
        "profile": [],
        "scaling_model": [],
    }
