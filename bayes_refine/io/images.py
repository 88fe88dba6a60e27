"""Diffraction images, read when asked for: HDF5 (NXmx, Eiger masters) and what fabio reads.

Bitshuffle, LZ4 and Zstandard compression come from hdf5plugin; fabio reads CBF, SMV, TIFF and
others, also compressed with bz2 or gz.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import fabio
import h5py
import hdf5plugin  # noqa: F401  importing it registers the filters
import numpy as np

from ..geometry.experiments import Still
from ..util.errors import InputError

_OPEN_FILES = 4
_HDF5_SUFFIXES = (".h5", ".hdf5", ".nxs", ".cxi")
_ANGSTROM = {"angstrom": 1.0, "angstroms": 1.0, "å": 1.0, "a": 1.0, "nm": 10.0, "m": 1e10}
_FWHM = 2 * np.sqrt(2 * np.log(2))


class ImageReader:
    """Reads the images of stills as photons; a context manager that keeps a few files open.

    Args:
        gain: counts per photon, in place of the detector's own.
        pedestal: counts at no photon, in place of the detector's own.
    """

    def __init__(self, gain: float | None = None, pedestal: float | None = None) -> None:
        self.gain = gain
        self.pedestal = pedestal
        self._files: OrderedDict[Path, _Hdf5Images] = OrderedDict()

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that are open."""
        while self._files:
            self._files.popitem()[1].file.close()

    def read(self, still: Still) -> tuple[np.ndarray, np.ndarray]:
        """Photons (raw − pedestal)/gain, and which pixels hold a measurement.

        Masked are pixels that are: outside the trusted range, at or above saturation, the
        largest value of an unsigned integer, not finite, in the file's ``pixel_mask``, in a
        panel's untrusted rectangles, or on a panel's outermost rows and columns.

        Returns:
            pixels: (P, ny, nx) float32, photons; 0 where not finite.
            valid: (P, ny, nx) bool.

        Raises:
            InputError: the file is missing, corrupt or without such a frame, or does not have
                the detector's shape.
        """
        counts, valid = self.counts(still)
        gain = still.detector.gain if self.gain is None else self.gain
        return counts / _per_panel(gain, still), valid

    def counts(self, still: Still) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`read`, before the gain is divided out: counts above the pedestal."""
        path, detector = still.image_path, still.detector
        if not path.is_file():
            raise InputError(f"image file {path} does not exist; put it where the .expt points")
        ny, nx = (int(n) for n in detector.shape[0])
        if _is_hdf5(path):
            source = self._hdf5(path)
            raw, bad, limits = source.frame(still.frame), source.pixel_mask, source.limits
        else:
            raw, bad, limits = _read_fabio(path, still.frame), None, (-np.inf, np.inf)
        raw = _on_panels(raw, (detector.n_panels, ny, nx), path, "an image")
        low, high = detector.trusted_range[:, 0], detector.trusted_range[:, 1]
        valid = _trusted(raw, low, high) & (raw >= limits[0]) & (raw < limits[1])
        if bad is not None:
            valid &= _on_panels(bad, raw.shape, path, "a pixel_mask") == 0
        valid[:, [0, -1], :] = False
        valid[:, :, [0, -1]] = False
        for panel, rectangles in enumerate(detector.untrusted):
            for x0, y0, x1, y1 in rectangles:
                valid[panel, max(y0, 0) : y1, max(x0, 0) : x1] = False
        pedestal = detector.pedestal if self.pedestal is None else self.pedestal
        counts = raw.astype(np.float32) - _per_panel(pedestal, still)
        return np.where(np.isfinite(counts), counts, np.float32(0)), valid

    def _hdf5(self, path: Path) -> _Hdf5Images:
        if path not in self._files:
            self._files[path] = _Hdf5Images(path)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].file.close()
        self._files.move_to_end(path)
        return self._files[path]


def read_bandwidth(still: Still) -> float | None:
    """Fractional rms bandwidth from NXmx ``incident_wavelength_spread``, None where not given.

    With units of length it is what NeXus defines, a FWHM, and is divided by λ·2√(2 ln 2); a
    number without units is taken as the rms fraction itself.

    Raises:
        InputError: the HDF5 file cannot be opened.
    """
    if not (still.image_path.is_file() and _is_hdf5(still.image_path)):
        return None
    with _open(still.image_path) as file:
        for entry in _groups(file, "NXentry", "entry"):
            for instrument in _groups(entry, "NXinstrument", "instrument"):
                for beam in _groups(instrument, "NXbeam", "beam"):
                    if "incident_wavelength_spread" not in beam:
                        continue
                    spread = beam["incident_wavelength_spread"]
                    values = np.ravel(spread[()])
                    value = float(values[still.frame if still.frame < len(values) else 0])
                    units = spread.attrs.get("units", "")
                    units = units.decode() if isinstance(units, bytes) else str(units)
                    if units.lower() in _ANGSTROM:
                        value *= _ANGSTROM[units.lower()] / (still.beam.wavelength * _FWHM)
                    return value
    return None


class _Hdf5Images:
    """The image stack of one open HDF5 file, with its pixel mask and limits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = _open(path)
        try:
            self.datasets = _image_datasets(self.file, path)
            self.pixel_mask, self.limits = _detector_masks(self.file)
        except (OSError, KeyError, RuntimeError) as error:
            self.file.close()
            raise InputError(f"{path} is corrupt or incomplete: {error}; copy it anew") from None
        except InputError:
            self.file.close()
            raise

    def frame(self, index: int) -> np.ndarray:
        """Raw image ``index``, (y, x) or (panel, y, x)."""
        stacks = [d[()][None] if d.ndim == 2 else d for d in self.datasets]
        start = 0
        for stack in stacks:
            if 0 <= index - start < len(stack):
                try:
                    return np.asarray(stack[index - start])
                except (OSError, RuntimeError) as error:
                    raise InputError(
                        f"frame {index} of {self.path} cannot be read: {error}; copy it anew"
                    ) from None
            start += len(stack)
        raise InputError(f"{self.path} has {start} frames, no frame {index}; correct the .expt")


def _is_hdf5(path: Path) -> bool:
    return path.suffix.lower() in _HDF5_SUFFIXES or h5py.is_hdf5(path)


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is not a readable HDF5 file: {error}; copy it anew") from None


def _groups(parent: h5py.Group, nx_class: str, name: str) -> Iterator[h5py.Group]:
    """Children of ``parent`` that have this class, or a name that starts with ``name``."""
    for key in parent:
        link = parent.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink) or parent.get(key, getclass=True) is not h5py.Group:
            continue
        given = parent[key].attrs.get("NX_class", "")
        given = given.decode() if isinstance(given, bytes) else given
        if given == nx_class or (not given and key.startswith(name)):
            yield parent[key]


def _image_datasets(file: h5py.File, path: Path) -> list[h5py.Dataset]:
    """The stack of images, in one data set or in the numbered pieces of an Eiger master."""
    for entry in _groups(file, "NXentry", "entry"):
        for data in _groups(entry, "NXdata", "data"):
            signal = data.attrs.get("signal", "data")
            signal = signal.decode() if isinstance(signal, bytes) else str(signal)
            pieces = sorted((k for k in data if re.fullmatch(r"data_\d+", k)), key=_number)
            names = [signal] if signal in data and signal not in pieces else pieces
            names = names or [k for k in ("data",) if k in data]
            datasets = [_dataset(data, name, path) for name in names]
            if datasets and all(d.ndim in (2, 3, 4) for d in datasets):
                return datasets
    raise InputError(f"{path} has no images in an NXdata group; give an NXmx or Eiger master file")


def _number(name: str) -> int:
    return int(name.rsplit("_", 1)[1])


def _dataset(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    link = group.get(name, getlink=True)
    try:
        dataset = group[name]
    except (KeyError, OSError):
        where = f" in {link.filename}" if isinstance(link, h5py.ExternalLink) else ""
        raise InputError(
            f"{path} points to {name}{where}, which cannot be opened; put it beside the master"
        ) from None
    for source in dataset.virtual_sources() if dataset.is_virtual else ():
        # HDF5 fills the images of a missing source with zeros and says nothing
        if source.file_name != "." and not (path.parent / source.file_name).is_file():
            raise InputError(
                f"{path} points to {source.file_name}, which does not exist; put it beside it"
            )
    return dataset


def _detector_masks(file: h5py.File) -> tuple[np.ndarray | None, tuple[float, float]]:
    """``pixel_mask`` where there is one, and (underload, saturation) in counts."""
    mask, low, high = None, -np.inf, np.inf
    for entry in _groups(file, "NXentry", "entry"):
        for instrument in _groups(entry, "NXinstrument", "instrument"):
            for detector in _groups(instrument, "NXdetector", "detector"):
                for group in (detector, *_groups(detector, "NXcollection", "detectorSpecific")):
                    if mask is None and "pixel_mask" in group:
                        mask = group["pixel_mask"][()]
                if "underload_value" in detector:
                    low = float(np.max(detector["underload_value"][()]))
                if "saturation_value" in detector:
                    high = float(np.min(detector["saturation_value"][()]))
    return mask, (low, high)


def _read_fabio(path: Path, frame: int) -> np.ndarray:
    try:
        with fabio.open(str(path)) as image:
            n = image.nframes
            if 0 <= frame < n:
                return np.asarray(image.data if frame == 0 else image.get_frame(frame).data)
    except Exception as error:  # each of fabio's formats fails in a way of its own
        raise InputError(
            f"{path} cannot be read as an image ({type(error).__name__}: {error}); copy it anew"
        ) from None
    raise InputError(f"{path} has {n} frames, no frame {frame}; correct the .expt")


def _on_panels(array: np.ndarray, shape: tuple[int, ...], path: Path, what: str) -> np.ndarray:
    if array.shape == shape:
        return array
    if shape[0] == 1 and array.shape == shape[1:]:
        return array[None]
    raise InputError(
        f"{path} has {what} of shape {array.shape} where the detector is (panel, y, x) = {shape}; "
        "use the .expt that belongs to it"
    )


def _trusted(raw: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Pixels of ``raw`` (P, ny, nx) within the panels' trusted ranges (P,) and well defined.

    dxtbx has trusted both ends or neither, as its version goes: the upper end is left out here,
    as is a lower end of −1 in whole numbers, which counting detectors write in their gaps.
    """
    low, high = low[:, None, None], high[:, None, None]
    high = np.where(high > low, high, np.inf)
    valid = (raw >= low) & (raw < high)
    if np.issubdtype(raw.dtype, np.integer):
        valid &= (raw != -1) | (low != -1)
        if np.issubdtype(raw.dtype, np.unsignedinteger):
            valid &= raw != np.iinfo(raw.dtype).max
    return valid & np.isfinite(raw)


def _per_panel(value: float | np.ndarray, still: Still) -> np.ndarray:
    values = np.broadcast_to(np.asarray(value, np.float32), (still.detector.n_panels,))
    return values[:, None, None]
