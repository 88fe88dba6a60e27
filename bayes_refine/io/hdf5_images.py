"""Images of HDF5 files: NXmx, Eiger masters, CXI, with their pixel masks and limits.

Bitshuffle, LZ4 and Zstandard compression come from hdf5plugin.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  importing it registers the filters
import numpy as np

from ..util.errors import InputError
from .boundary import refusing
from .hdf5_links import child, groups, open_hdf5, whole_numbers
from .hdf5_stack import Piece, find_stack, locate_image, named_stack
from .hdf5_written import WrittenImages
from .image_shape import ImageShape

_SUFFIXES = (".h5", ".hdf5", ".nxs", ".cxi")
_MOST_CHUNK = 2**30  # bytes that are unpacked to read one image


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, by its content or its name."""
    return path.suffix.lower() in _SUFFIXES or bool(h5py.is_hdf5(path))


class Hdf5Images:
    """The images of one open HDF5 file.

    Args:
        path: the file. shape: of the detector's images; finds them in a file of unknown layout.
        dataset: path of the images in the file, if it is known.

    Raises:
        InputError: the file cannot be opened or has no images.
    """

    def __init__(self, path: Path, shape: ImageShape, dataset: str = "") -> None:
        self.path, self.shape = path, shape
        self.file = open_hdf5(path)
        self._written = WrittenImages()
        try:
            with refusing(path):
                named = [named_stack(self.file, path, shape, dataset)] if dataset else None
                self._pieces = named or find_stack(self.file, path, shape)
                self._pixel_mask = _mask(self.file, path, self._pieces)
                self.limits = _limits(self.file, path)
        except InputError:
            self.file.close()
            raise
        self._of_all: np.ndarray | None = None

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def frame(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Counts of image ``index`` (panel, y, x) as stored, and its usable pixels (None for all).

        Pixels in ``pixel_mask`` are unusable, and so are pixels of a virtual data set that have no
        source.

        Raises:
            InputError: there is no such image, it was never written, its file is absent, it is
                damaged, or it does not have the shape of the detector.
        """
        with refusing(self.path, f"frame {index}"):
            dataset, place = locate_image(self._pieces, index, self.path)
            shape = dataset.shape if place is None else dataset.shape[1:]
            self.shape.check(shape, self.path, "an image")
            self._check_chunks(dataset)
            held = self._written.held(dataset, self.path, place)
            usable = None if held is None else self.shape.on_panels(held, self.path, "an image")
            if self._pixel_mask is not None:
                good = self._good(self._pixel_mask, index)
                usable = good if usable is None else usable & good
            raw = dataset[()] if place is None else dataset[place]
            return self.shape.on_panels(np.asarray(raw), self.path, "an image"), usable

    def _good(self, mask: h5py.Dataset, index: int) -> np.ndarray:
        """Pixels where the mask is 0; the file has one mask for all images or one for each."""
        shape = mask.shape
        one = len(shape) > 0 and shape[0] == 1 and self.shape.fits(shape[1:])
        if one or self.shape.fits(shape):
            if self._of_all is None:
                good = np.asarray(mask[()]) == 0
                good = good[0] if one else good
                self._of_all = self.shape.on_panels(good, self.path, "a pixel_mask")
            return self._of_all
        self.shape.check(shape[1:] if len(shape) > 2 else shape, self.path, "a pixel_mask")
        if not 0 <= index < shape[0]:
            raise InputError(
                f"{self.path} has a pixel_mask for {shape[0]} images, none for frame {index}; "
                "correct the file"
            )
        return self.shape.on_panels(np.asarray(mask[index]) == 0, self.path, "a pixel_mask")

    def _check_chunks(self, dataset: h5py.Dataset) -> None:
        if dataset.chunks is None:
            return
        size = float(np.prod(np.array(dataset.chunks, float))) * dataset.dtype.itemsize
        if size > _MOST_CHUNK:
            raise InputError(
                f"{self.path} has images in chunks of {size / 2**30:.1f} GiB; store one image a "
                "chunk (h5repack -l CHUNK=1x…)"
            )


def _detectors(file: h5py.File) -> Iterator[h5py.Group]:
    for entry in groups(file, "NXentry", "entry"):
        for instrument in groups(entry, "NXinstrument", "instrument"):
            yield from groups(instrument, "NXdetector", "detector")


def _mask(file: h5py.File, path: Path, pieces: list[Piece]) -> h5py.Dataset | None:
    """The data set ``pixel_mask`` of NXmx, or ``mask`` beside the images in CXI; 0 is good."""
    for detector in _detectors(file):
        for group in (detector, *groups(detector, "NXcollection", "detectorSpecific")):
            mask = child(group, "pixel_mask", path)
            if mask is not None:
                return whole_numbers(mask, path, "pixel_mask")
    data = next((piece.data for piece in pieces if piece.data is not None), None)
    if data is not None and "cxi_version" in file:
        mask = child(data.parent, "mask", path)
        if mask is not None:
            return whole_numbers(mask, path, "mask")
    return None


def _limits(file: h5py.File, path: Path) -> tuple[float, float]:
    """(underload, saturation) in counts; infinite if the file has none or they are no range."""
    low, high = -np.inf, np.inf
    for detector in _detectors(file):
        low = max([low, *_values(detector, "underload_value", path)])
        high = min([high, *_values(detector, "saturation_value", path)])
    return (low, high) if low < high else (-np.inf, np.inf)


def _values(detector: h5py.Group, name: str, path: Path) -> list[float]:
    dataset = child(detector, name, path)
    if dataset is None:
        return []
    if int(whole_numbers(dataset, path, name).size or 0) > 2**20:
        raise InputError(f"{path}: {name} is not a number, or one a panel; correct the file")
    values = np.ravel(np.asarray(dataset[()], float))
    return [float(v) for v in values[np.isfinite(values)]]
