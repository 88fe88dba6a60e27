"""An NXmx file of images, with the geometry that DIALS and CrystFEL users need to open it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from ..geometry.detector import Beam, Detector

TO_MCSTAS = np.diag([-1.0, -1.0, 1.0])  # from x right, y down: McStas has y up, z along the beam
GROUPS = {
    "entry": "NXentry",
    "entry/data": "NXdata",
    "entry/sample": "NXsample",
    "entry/source": "NXsource",
    "entry/instrument": "NXinstrument",
    "entry/instrument/beam": "NXbeam",
    "entry/instrument/detector": "NXdetector",
    "entry/instrument/detector/transformations": "NXtransformations",
}


def write_header(
    file: h5py.File, detector: Detector, beam: Beam, mask: np.ndarray, saturation: float
) -> None:
    """All but the images: NXmx groups, beam, detector with a module a panel, pixel mask.

    Args:
        detector: in a frame with the beam along +z, x right and y down. mask: (height, width)
            bool, bad pixels of the array of all panels.
    """
    for name, nx_class in GROUPS.items():
        file.create_group(name).attrs["NX_class"] = nx_class
    entry, instrument = file["entry"], file["entry/instrument"]
    entry.attrs["default"] = "data"
    entry["definition"] = "NXmx"
    entry["start_time"] = "2026-01-01T00:00:00Z"  # simulated: always the same
    entry["end_time_estimated"] = "2026-01-01T00:01:00Z"
    entry["data"].attrs["signal"] = "data"
    entry["sample/name"] = "simulated"
    entry["sample/depends_on"] = "."
    entry["source/name"] = instrument["name"] = "bayes-refine simulate"
    _numbers(
        instrument["beam"],
        {
            "incident_wavelength": (beam.wavelength, "angstrom"),
            "incident_wavelength_spread": (beam.bandwidth, ""),
            "total_flux": (1e12, "Hz"),
        },
    )
    group = instrument["detector"]
    distance_m = float(detector.origin_mm[:, 2].mean()) * 1e-3
    center = -detector.origin_mm[0, :2] / detector.pixel_size_mm[0]
    _numbers(
        group,
        {
            "detector_distance": (distance_m, "m"),
            "distance": (distance_m, "m"),
            "x_pixel_size": (detector.pixel_size_mm[0, 0] * 1e-3, "m"),
            "y_pixel_size": (detector.pixel_size_mm[0, 1] * 1e-3, "m"),
            "beam_center_x": (center[0], "pixel"),
            "beam_center_y": (center[1], "pixel"),
            "sensor_thickness": (max(float(detector.thickness_mm[0]), 1e-6) * 1e-3, "m"),
            "count_time": (1e-4, "s"),
            "saturation_value": (saturation, ""),
        },
    )
    group["sensor_material"] = "Si"
    group["pixel_mask"] = mask.astype(np.uint32)
    group["depends_on"] = "/entry/instrument/detector/transformations/det_z"
    _axis(group["transformations"], "det_z", [distance_m * 1e3], [0, 0, 1], [0, 0, 0], ".")
    for p in range(detector.n_panels):
        _module(group, detector, p, distance_m * 1e3)


def _module(group: h5py.Group, detector: Detector, p: int, distance_mm: float) -> None:
    """NXdetector_module of panel p: its place in the data, its corner and axes."""
    module = group.create_group(f"module{p}" if detector.n_panels > 1 else "module")
    module.attrs["NX_class"] = "NXdetector_module"
    module["data_origin"] = np.array(detector.raw_image_offset[p][::-1])
    module["data_size"] = np.array(detector.shape[p])
    corner = TO_MCSTAS @ (detector.origin_mm[p] - [0, 0, distance_mm])
    det_z = "/entry/instrument/detector/transformations/det_z"
    _axis(module, "module_offset", 0.0, [1, 0, 0], corner, det_z)
    at = f"{module.name}/module_offset"
    for name, size, axis in (
        ("fast_pixel_direction", detector.pixel_size_mm[p, 0], detector.fast[p]),
        ("slow_pixel_direction", detector.pixel_size_mm[p, 1], detector.slow[p]),
    ):
        _axis(module, name, size, TO_MCSTAS @ axis, [0, 0, 0], at)


def _axis(group: h5py.Group, name: str, value: Any, vector: Any, offset: Any, on: str) -> None:
    """A translation of NXtransformations, mm."""
    group[name] = value
    group[name].attrs.update(
        {
            "transformation_type": "translation",
            "units": "mm",
            "vector": np.array(vector, float),
            "offset": np.array(offset, float),
            "offset_units": "mm",
            "depends_on": on,
        }
    )


def one_array(detector: Detector, panels: np.ndarray, fill: Any) -> np.ndarray:
    """(height, width) of panels (P, ny, nx), tiles of one array; ``fill`` where none lies."""
    start = np.array(detector.raw_image_offset)[:, ::-1]
    out = np.full((start + detector.shape).max(axis=0), fill, panels.dtype)
    for (y, x), values in zip(start, panels, strict=True):
        out[y : y + values.shape[0], x : x + values.shape[1]] = values
    return out


def _numbers(group: h5py.Group, values: Mapping[str, tuple[float, str]]) -> None:
    for name, (value, unit) in values.items():
        group[name] = value
        if unit:
            group[name].attrs["units"] = unit


def image_dataset(file: h5py.File, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """``/entry/data/data`` (N, ...), a chunk an image, bitshuffle and LZ4."""
    return file.create_dataset(
        "entry/data/data", shape, dtype, chunks=(1, *shape[1:]), **hdf5plugin.Bitshuffle()
    )
