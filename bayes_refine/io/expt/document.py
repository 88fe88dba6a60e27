"""An ``.expt`` document of stills that came from another format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...geometry.detector import Beam, Detector
from ...geometry.experiments import Still

_LIMIT = 1e10  # counts: stands for a trusted range without an end


def document_of(stills: Sequence[Still]) -> dict[str, Any]:
    """The experiment list of stills, as DIALS reads it; equal models are written once."""
    lists: dict[str, list] = {key: [] for key in ("beam", "detector", "crystal", "imageset")}
    places: dict[tuple, int] = {}

    def place(key: str, content: tuple, entry: dict[str, Any]) -> int:
        if (key, content) not in places:
            places[key, content] = len(lists[key])
            lists[key].append(entry)
        return places[key, content]

    experiments = []
    for still in stills:
        beam, detector, crystal = still.beam, still.detector, still.crystal
        b = (beam.wavelength, *beam.s0_direction, *beam.polarization_normal)
        axes = zip("abc", np.linalg.inv(crystal.A).tolist(), strict=True)
        experiments.append(
            {
                "__id__": "Experiment",
                "identifier": still.identifier,
                "beam": place("beam", b, _beam(beam)),
                "detector": place("detector", _content(detector), _detector(detector)),
                "crystal": place(
                    "crystal",
                    (crystal.hall, crystal.A.tobytes()),
                    {"__id__": "crystal"}
                    | {f"real_space_{name}": axis for name, axis in axes}
                    | {"space_group_hall_symbol": crystal.hall},
                ),
                "imageset": place("imageset", (still.image_path, still.frame), _imageset(still)),
            }
        )
    nothing: dict[str, list] = {k: [] for k in ("goniometer", "scan", "profile", "scaling_model")}
    return {"__id__": "ExperimentList", "experiment": experiments, **lists, **nothing}


def _content(detector: Detector) -> tuple:
    arrays = (detector.origin_mm, detector.fast, detector.slow, detector.trusted_range)
    return (*(a.tobytes() for a in arrays), detector.gain.tobytes(), detector.untrusted)


def _beam(beam: Beam) -> dict[str, Any]:
    return {
        "__id__": "monochromatic",
        "direction": (-beam.s0_direction).tolist(),  # towards the source
        "wavelength": beam.wavelength,
        "divergence": 0.0,
        "sigma_divergence": 0.0,
        "polarization_normal": beam.polarization_normal.tolist(),
        "polarization_fraction": beam.polarization_fraction,
        "flux": 0.0,
        "transmission": 1.0,
        "probe": "x-ray",
    }


def _detector(detector: Detector) -> dict[str, Any]:
    offsets = detector.raw_image_offset or ((0, 0),) * detector.n_panels
    panels = []
    for p in range(detector.n_panels):
        low, high = np.clip(detector.trusted_range[p], -_LIMIT, _LIMIT).tolist()
        thick = bool(detector.mu_per_mm[p] > 0 and detector.thickness_mm[p] > 0)
        panels.append(
            _frame(detector, p)
            | {
                "name": f"panel{p}",
                "type": "SENSOR_PAD",
                "raw_image_offset": list(offsets[p]),
                "image_size": detector.shape[p, ::-1].tolist(),
                "pixel_size": detector.pixel_size_mm[p].tolist(),
                "trusted_range": [low, high],
                "thickness": float(detector.thickness_mm[p]),
                "material": "",
                "mu": float(detector.mu_per_mm[p]),
                "identifier": "",
                "mask": [list(r) for r in detector.untrusted[p]] if detector.untrusted else [],
                "gain": float(detector.gain[p]),
                "pedestal": float(detector.pedestal[p]),
                "px_mm_strategy": {
                    "type": "ParallaxCorrectedPxMmStrategy" if thick else "SimplePxMmStrategy"
                },
            }
        )
    root = {
        "name": "",
        "type": "",
        "fast_axis": [1.0, 0.0, 0.0],
        "slow_axis": [0.0, 1.0, 0.0],
        "origin": [0.0, 0.0, 0.0],
        "raw_image_offset": [0, 0],
        "image_size": [0, 0],
        "pixel_size": [0.0, 0.0],
        "trusted_range": [0.0, 0.0],
        "thickness": 0.0,
        "material": "",
        "mu": 0.0,
        "identifier": "",
        "mask": [],
        "gain": 1.0,
        "pedestal": 0.0,
        "px_mm_strategy": {"type": "SimplePxMmStrategy"},
        "children": [{"panel": p} for p in range(detector.n_panels)],
    }
    return {"panels": panels, "hierarchy": root}


def _frame(detector: Detector, p: int) -> dict[str, Any]:
    return {
        "fast_axis": detector.fast[p].tolist(),
        "slow_axis": detector.slow[p].tolist(),
        "origin": detector.origin_mm[p].tolist(),
    }


def _imageset(still: Still) -> dict[str, Any]:
    files: dict[str, Any] = {"mask": None, "gain": None, "pedestal": None, "dx": None, "dy": None}
    images = {"images": [str(still.image_path)], "single_file_indices": [still.frame]}
    return {"__id__": "ImageSet", **images, **files, "params": {}}
