"""Read files with a number for each pixel: masks, gain maps, pedestal maps.

The formats are HDF5 (``file.h5`` or ``file.h5:/path/in/it``), NPY, CBF, TIFF and others that fabio
knows.  Pickles, such as the masks of DIALS, are refused: a pickle can run any program when it is
opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..geometry.detector import Detector
from ..geometry.experiments import Experiments
from ..util.errors import InputError
from .boundary import head, refusing, regular_file
from .hdf5_images import is_hdf5
from .hdf5_links import data_sets, follow, open_hdf5, whole_numbers
from .image_shape import ImageShape
from .images import read_pixels

_USUAL = tuple(
    f"entry/instrument/detector/{name}" for name in ("pixel_mask", "detectorSpecific/pixel_mask")
)
_LEAST_USABLE = 0.5  # share of the pixels; with fewer, the mask is inverted


def read_mask(path: str | Path, detector: Detector) -> np.ndarray:
    """Read a mask: (P, ny, nx) bool, True for pixels that may be used.

        usable = read_mask("mask.h5:/data/mask", still.detector)
        reader = ImageReader(usable=usable)

    True marks a good pixel, as in DIALS.  A whole number is a set of flags of faults of the pixel,
    0 for none, as in NXmx, CXI, pyFAI and files of Dectris.

    Raises:
        InputError: the file cannot be read or is a pickle, it does not have the shape of the
            detector, or it leaves fewer than half of the pixels.
    """
    path = Path(path)
    values = _values(path, detector, "a mask")
    usable = values if values.dtype == bool else values == 0
    if np.mean(usable) < _LEAST_USABLE:
        raise InputError(
            f"{path} masks {1 - np.mean(usable):.0%} of the pixels; in a mask of truth values True "
            "is good, in one of numbers 0 is good: turn it round"
        )
    return usable


def read_pixel_map(path: str | Path, detector: Detector, positive: bool = False) -> np.ndarray:
    """Read a gain or pedestal map: (P, ny, nx) float32, NaN for pixels not to be used.

        reader = ImageReader(gain_map=read_pixel_map("gain.npy", still.detector, positive=True))

    Args:
        positive: whether values must be positive, as gains are; others then become NaN.

    Raises:
        InputError: the file cannot be read or is a pickle, it does not have the shape of the
            detector, or fewer than half of its numbers are finite (and positive).
    """
    path = Path(path)
    with np.errstate(all="ignore"):
        values = _values(path, detector, "a map").astype(np.float32)
        values[~np.isfinite(values) | (positive & (values <= 0))] = np.nan
    if np.mean(np.isfinite(values)) < _LEAST_USABLE:
        raise InputError(
            f"{path} has no usable number for most pixels; give a map of this detector"
        )
    return values


def mask_files(experiments: Experiments) -> list[Path]:
    """The mask files named by the image sets of an experiment list, each once."""
    folder = experiments.path.parent
    names = [s.get("mask") for s in experiments.document.get("imageset", ()) if isinstance(s, dict)]
    return list(dict.fromkeys(folder / name for name in names if isinstance(name, str) and name))


def _values(path: Path, detector: Detector, what: str) -> np.ndarray:
    shape = ImageShape.of(detector, path)
    file, inside = path, ""
    if not regular_file(path) and ":" in str(path):
        name, inside = str(path).rsplit(":", 1)
        file = Path(name)
    if not regular_file(file):
        raise InputError(f"{file} does not exist; give {what} that does (--mask for masks)")
    with refusing(file, what):
        start = head(file, 6)
        if is_hdf5(file):
            return _of_hdf5(file, inside, shape, what)
        if start == b"\x93NUMPY":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            shape.check(array.shape, file, what)
            if array.dtype.kind not in "biuf":
                raise InputError(f"{file} holds {array.dtype}, not numbers; give {what} of numbers")
            return shape.on_panels(np.array(array), file, what)
        if start.startswith((b"\x80", b"(", b"c")):
            raise InputError(
                f"{file} is a pickle, which can run any program when it is opened and is not read; "
                "write it as HDF5, NPY or TIFF and give that (--mask for masks)"
            )
        return read_pixels(file, 0, shape)


def _of_hdf5(path: Path, inside: str, shape: ImageShape, what: str) -> np.ndarray:
    with open_hdf5(path) as file:
        dataset: Any = None
        for place in (inside,) if inside else _USUAL:
            dataset = dataset if dataset is not None else follow(file, place, path)
        if dataset is None and not inside:
            fitting = [d for _, d in data_sets(file, path) if shape.fits(d.shape or ())]
            if len(fitting) > 1:
                raise InputError(f"{path} has several data sets that fit; give {path}:/which")
            dataset = fitting[0] if fitting else None
        if dataset is None:
            raise InputError(f"{path} has no {inside or 'data set that fits'}; give {path}:/which")
        dataset = whole_numbers(dataset, path, what)
        found = dataset.shape
        one = found[1:] if len(found) > 2 and found[0] == 1 and not shape.fits(found) else found
        shape.check(one, path, what)
        return shape.on_panels(np.asarray(dataset[()]).reshape(one), path, what)
