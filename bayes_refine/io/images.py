"""Diffraction images, read when they are needed: one reader and one exception for all formats."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..geometry.experiments import Still
from ..util.errors import InputError
from .boundary import content, head, packed, refusing, regular_file
from .cbf_images import is_cbf, read_cbf
from .hdf5_beam import FileBeam, read_hdf5_beams
from .hdf5_images import Hdf5Images, is_hdf5
from .image_shape import ImageShape

_OPEN_FILES = 4
_KEPT_BYTES = 2**28  # of images kept as stored, which later rounds need not unpack again
_ONE_THREAD = Lock()  # HDF5 has a lock of its own, so that nothing is lost


class ImageReader:
    """Reads images of stills as photons; a context manager, which keeps a few files open.

    Several threads can read at the same time.

        with ImageReader(gain=5.5) as reader:
            photons, valid = reader.read(still)  # (P, ny, nx) float32 and bool

    Args:
        gain: counts per photon; by default that of the detector.
        pedestal: counts at no photon; by default that of the detector.
        usable: (P, ny, nx) bool, pixels that may be used in any image (``read_mask``).
        gain_map: (P, ny, nx) counts per photon of each pixel; ``gain`` is then 1.
        pedestal_map: (P, ny, nx) counts at no photon of each pixel, instead of ``pedestal``.
    """

    def __init__(
        self,
        gain: float | None = None,
        pedestal: float | None = None,
        usable: np.ndarray | None = None,
        gain_map: np.ndarray | None = None,
        pedestal_map: np.ndarray | None = None,
    ) -> None:
        self.gain = 1.0 if gain is None and gain_map is not None else gain
        self.pedestal = pedestal
        self.usable = usable
        self.gain_map = gain_map
        self.pedestal_map = pedestal_map
        self._files: OrderedDict[tuple[Path, ImageShape, str], Hdf5Images] = OrderedDict()
        self._kept = _Kept()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to read the same images, without the open files."""
        return {**self.__dict__, "_files": OrderedDict(), "_kept": _Kept()}

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all open files, and drop the images in memory."""
        self._kept = _Kept()
        while self._files:
            self._files.popitem()[1].close()

    def read(self, still: Still) -> tuple[np.ndarray, np.ndarray]:
        """Photons (raw − pedestal)/gain, and which pixels hold a measurement.

        A pixel is masked if it is outside the trusted range, at or above saturation, not finite, or
        the largest value of an integer type (of a signed type, also the smallest); if it is in the
        file's ``pixel_mask``, in a part of a virtual data set without a file, not ``usable``, or in
        an untrusted rectangle of its panel; or if it is on the edge of its panel.

        Returns:
            pixels: (P, ny, nx) float32, photons; 0 where they are not finite.
            valid: (P, ny, nx) bool.

        Raises:
            InputError: the file is missing, damaged or without such a frame; the frame was never
                written, or does not have the shape of the detector.
        """
        counts, valid = self.counts(still)
        gain = still.detector.gain if self.gain is None else self.gain
        with refusing(still.image_path), np.errstate(all="ignore"):
            counts /= _per_panel(gain, still)
        return counts, valid

    def counts(self, still: Still) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`read`, in counts above the pedestal: the gain is not divided out."""
        with refusing(still.image_path), np.errstate(all="ignore"):
            raw = self._raw(still)
            valid = _trusted(raw, still)
            _mask_edges(valid, still)
            if self.usable is not None:
                valid &= self.usable
            counts = raw.pixels.astype(np.float32)
            if self.pedestal_map is not None:
                counts -= self.pedestal_map
            else:
                pedestal = still.detector.pedestal if self.pedestal is None else self.pedestal
                counts -= _per_panel(pedestal, still)
            if self.gain_map is not None:
                counts /= self.gain_map
            maps = self.gain_map is not None or self.pedestal_map is not None
            if raw.pixels.dtype.kind == "f" or maps:
                finite = np.isfinite(counts)
                valid &= finite
                counts[~finite] = 0
            return counts, valid

    def _raw(self, still: Still) -> _Raw:
        path, shape = still.image_path, ImageShape.of(still.detector, still.image_path)
        key = (path, still.frame, shape, still.dataset)
        with _ONE_THREAD:
            if (known := self._kept.get(key)) is not None:
                return known
        if not regular_file(path):
            raise InputError(
                f"image file {path} does not exist; put it there, or say with --image-folder where "
                "the images are now"
            )
        if is_hdf5(path):
            with _ONE_THREAD:
                source = self._hdf5(path, shape, still.dataset)
                raw = _Raw(*source.frame(still.frame), source.limits)
        else:
            raw = _Raw(read_pixels(path, still.frame, shape), None, (-np.inf, np.inf))
        with _ONE_THREAD:
            self._kept.put(key, raw)
        return raw

    def _hdf5(self, path: Path, shape: ImageShape, dataset: str) -> Hdf5Images:
        key = (path, shape, dataset)
        if key not in self._files:
            self._files[key] = Hdf5Images(path, shape, dataset)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(key)
        return self._files[key]


class _Raw:
    """An image as stored.

    Attributes:
        pixels: (P, ny, nx) in the type of the file. usable: (P, ny, nx) bool, None for all.
        limits: (underload, saturation) in counts.
    """

    def __init__(
        self, pixels: np.ndarray, usable: np.ndarray | None, limits: tuple[float, float]
    ) -> None:
        self.pixels, self.usable, self.limits = pixels, usable, limits

    @property
    def nbytes(self) -> int:
        """Bytes in memory; a mask that several images share counts for each of them."""
        return self.pixels.nbytes + (0 if self.usable is None else self.usable.nbytes)


class _Kept:
    """Images as stored, of at most ``_KEPT_BYTES``.

    Images are read in turn, again and again: the last one but the newest makes room.
    """

    def __init__(self) -> None:
        self._images: OrderedDict[Hashable, _Raw] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable) -> _Raw | None:
        """An image; None if it is not kept."""
        return self._images.get(key)

    def put(self, key: Hashable, raw: _Raw) -> None:
        """Keep an image, in place of others if need be."""
        if (same := self._images.pop(key, None)) is not None:
            self._bytes -= same.nbytes
        while self._images and self._bytes + raw.nbytes > _KEPT_BYTES:
            self._bytes -= self._images.popitem()[1].nbytes
        self._images[key] = raw
        self._bytes += raw.nbytes


def read_beams(stills: Sequence[Still]) -> list[FileBeam | InputError]:
    """The beam of each image as its file states it (``hdf5_beam``), or why it cannot be told; only
    NXmx files state one."""
    found: list[FileBeam | InputError] = []
    for path, of_file in groupby(stills, lambda still: still.image_path):
        images = [(still.frame, still.beam.wavelength) for still in of_file]
        try:
            is_stated = regular_file(path) and is_hdf5(path)
            found += read_hdf5_beams(path, images) if is_stated else [FileBeam()] * len(images)
        except InputError as error:
            found += [error] * len(images)
    return found


def read_beam(still: Still) -> FileBeam:
    """The beam of one image as its file states it.

    Raises:
        InputError: the HDF5 file cannot be opened, or its numbers are impossible.
    """
    (found,) = read_beams([still])
    if isinstance(found, InputError):
        raise found
    return found


def read_bandwidth(still: Still) -> float | None:
    """Fractional rms bandwidth in an NXmx file; None if the file has none.

    A spectrum is used first, then ``incident_wavelength_spread``.  With units of length the spread
    is a FWHM, as NeXus defines it, and is divided by λ·2√(2 ln 2); without units it is taken as the
    rms fraction.

    Raises:
        InputError: the HDF5 file cannot be opened, or its numbers are impossible.
    """
    return read_beam(still).bandwidth


def read_pixels(path: Path, frame: int, shape: ImageShape) -> np.ndarray:
    """Pixels (P, ny, nx) as stored, from a file of any format but HDF5.

    Raises:
        InputError: the file is damaged, has no such frame, or does not have this shape.
    """
    with refusing(path):
        # headers, and 64 bits a pixel with room to spare
        limit = 2**24 + 16 * shape.pixels
        start = head(path, 64)
        unpacked = content(path, limit) if packed(start) else None
        named = path.name.lower().endswith((".cbf", ".cbf.gz", ".cbf.bz2"))
        if not named and not is_cbf((unpacked or start)[:64]):
            from .other_images import read_other  # imports fabio, which is slow and rarely needed

            return read_other(path, frame, shape, unpacked)
        if frame != 0:
            raise InputError(f"{path} has 1 frames, no frame {frame}; correct the .expt")
        return read_cbf(path, shape, unpacked or content(path, limit))


def _trusted(raw: _Raw, still: Still) -> np.ndarray:
    """(P, ny, nx) bool: pixels within the trusted ranges of the panels and the limits of the file.

    Versions of dxtbx differ in whether the ends are trusted.  Here the upper end is not trusted,
    nor a lower end of −1 in whole numbers, which photon-counting detectors write in their gaps.
    """
    kind = raw.pixels.dtype.kind
    lowest, highest = raw.limits
    valid = np.empty(raw.pixels.shape, bool)
    for panel, (low, high) in enumerate(still.detector.trusted_range):
        pixels, good = raw.pixels[panel], valid[panel]
        first, end = max(low, lowest), min(high if high > low else np.inf, highest)
        if kind in "iu":  # compared as whole numbers, which is quick
            ends = np.iinfo(pixels.dtype)
            first = max(first, 0 if low == -1 else ends.min + (kind == "i"))
            first, end = (math.ceil(min(max(x, ends.min), ends.max)) for x in (first, end))
        np.greater_equal(pixels, first, out=good)
        good &= pixels < end
    return valid if raw.usable is None else valid & raw.usable


def _mask_edges(valid: np.ndarray, still: Still) -> None:
    """Mask, in place, the outermost rows and columns and the untrusted rectangles of panels."""
    for panel, (ny, nx) in enumerate(still.detector.shape):
        valid[panel, 0], valid[panel, ny - 1 :] = False, False
        valid[panel, :, 0], valid[panel, :, nx - 1 :] = False, False
    for panel, rectangles in enumerate(still.detector.untrusted):
        for x0, y0, x1, y1 in rectangles:
            valid[panel, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = False


def _per_panel(value: float | np.ndarray, still: Still) -> np.ndarray:
    values = np.broadcast_to(np.asarray(value, np.float32), (still.detector.n_panels,))
    return values[:, None, None]
