"""The beam in NXmx files: the wavelength of each frame, its spread, or a spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ..util.errors import InputError
from .boundary import refusing
from .hdf5_links import attribute, child, groups, open_hdf5, whole_numbers

_ANGSTROM = {"angstrom": 1.0, "angstroms": 1.0, "å": 1.0, "a": 1.0, "nm": 10.0, "m": 1e10}
_FWHM = 2 * np.sqrt(2 * np.log(2))
_MOST = 2**20  # wavelengths of a spectrum


class FileBeam(NamedTuple):
    """The beam of one image as a file states it; None for what the file does not state.

    Attributes:
        wavelength: Å, of this frame alone, or the mean of its spectrum; None if the file has one
            wavelength for all its frames.
        bandwidth: rms Δλ/λ, a fraction.
    """

    wavelength: float | None = None
    bandwidth: float | None = None


def read_hdf5_beams(path: Path, images: Sequence[tuple[int, float]]) -> list[FileBeam | InputError]:
    """Read the beams of images of one file, which is opened once.

    ``incident_wavelength`` holds one number for each frame; or, beside
    ``incident_wavelength_weights``, a spectrum for all frames or a row for each.  The mean and the
    rms spread of a spectrum are taken.  Without a spectrum ``incident_wavelength_spread`` is the
    spread.

    Args:
        images: frame, and wavelength in Å, to which the spread refers if the file has none.

    Returns:
        For each image its beam, or why there is none: its numbers are impossible.

    Raises:
        InputError: the file cannot be opened.
    """
    with open_hdf5(path) as file:
        with refusing(path):
            beams = [_Beam(group, path) for group in _beams(file)]
        return [_beam_of(beams, path, *image) for image in images]


def _beam_of(
    beams: Sequence[_Beam], path: Path, frame: int, wavelength: float
) -> FileBeam | InputError:
    try:
        with refusing(path):
            for beam in beams:
                own, spread = _wavelength(beam, path, frame)
                if spread is None:
                    spread = _spread(beam, path, frame, own or wavelength)
                if own is not None or spread is not None:
                    return FileBeam(own, spread)
    except InputError as error:
        return error
    return FileBeam()


def _beams(file: h5py.File) -> Iterator[h5py.Group]:
    for entry in groups(file, "NXentry", "entry"):
        for instrument in groups(entry, "NXinstrument", "instrument"):
            yield from groups(instrument, "NXbeam", "beam")


class _Beam:
    """The data sets of a beam, each opened when it is asked for."""

    def __init__(self, group: h5py.Group, path: Path) -> None:
        self._group, self._path = group, path

    @cached_property
    def wavelength(self) -> tuple[h5py.Dataset | None, float]:
        """``incident_wavelength``, and Å in its unit."""
        given = self._numbers("incident_wavelength")
        return given, _ANGSTROM.get(attribute(given, "units").lower(), 1.0)

    @cached_property
    def weights(self) -> h5py.Dataset | None:
        """``incident_wavelength_weights``."""
        return self._numbers("incident_wavelength_weights")

    @cached_property
    def spread(self) -> tuple[h5py.Dataset | None, str]:
        """``incident_wavelength_spread``, and its unit."""
        given = self._numbers("incident_wavelength_spread")
        return given, attribute(given, "units").lower()

    def _numbers(self, name: str) -> h5py.Dataset | None:
        given = child(self._group, name, self._path)
        return None if given is None else whole_numbers(given, self._path, name)


def _wavelength(beam: _Beam, path: Path, frame: int) -> tuple[float | None, float | None]:
    """The wavelength of the frame, and the rms fraction of its spectrum."""
    given, unit = beam.wavelength
    if given is None:
        return None, None
    if beam.weights is not None:
        return _moments(unit * _row(given, path, frame), _row(beam.weights, path, frame), path)
    if given.ndim != 1 or given.shape[0] < 2:
        return None, None
    if frame >= given.shape[0]:
        raise InputError(
            f"{path} has {given.shape[0]} incident_wavelength, none for frame {frame}; correct it"
        )
    return _checked(unit * float(given[frame]), path), None


def _row(dataset: h5py.Dataset, path: Path, frame: int) -> np.ndarray:
    """The row of a frame in (n, m) numbers, or the (m,) numbers that hold for all frames."""
    if dataset.shape[-1:] == () or dataset.shape[-1] > _MOST or dataset.ndim > 2:
        raise InputError(f"{path}: {dataset.name} is no spectrum; correct the file")
    if dataset.ndim == 2 and dataset.shape[0] > 1:
        if frame >= dataset.shape[0]:
            raise InputError(f"{path}: {dataset.name} has no row for frame {frame}; correct it")
        return np.asarray(dataset[frame], float)
    return np.ravel(np.asarray(dataset[()], float))


def _moments(wavelength: np.ndarray, weight: np.ndarray, path: Path) -> tuple[float, float]:
    total = float(np.sum(weight)) if wavelength.shape == weight.shape else 0.0
    if not (total > 0 and np.all(np.isfinite(wavelength)) and np.all(weight >= 0)):
        raise InputError(
            f"{path}: incident_wavelength and its weights are no spectrum; correct the file"
        )
    mean = _checked(float(weight @ wavelength) / total, path)
    return mean, float(np.sqrt(weight @ (wavelength - mean) ** 2 / total)) / mean


def _checked(wavelength: float, path: Path) -> float:
    if not 1e-3 <= wavelength <= 100:
        raise InputError(
            f"{path}: an incident_wavelength of {wavelength:g} Å cannot be; correct it"
        )
    return wavelength


def _spread(beam: _Beam, path: Path, frame: int, wavelength: float) -> float | None:
    """Fractional rms bandwidth from ``incident_wavelength_spread``."""
    spread, units = beam.spread
    n = 0 if spread is None else int(spread.size or 0)
    if n == 0:
        return None
    value = float(_element(spread, frame if frame < n else 0))
    if units in _ANGSTROM:
        value *= _ANGSTROM[units] / (wavelength * _FWHM)
    if not 0 <= value < 1:
        raise InputError(
            f"{path}: a bandwidth of {value:g} cannot be; correct incident_wavelength_spread, or "
            "give --bandwidth"
        )
    return value


def _element(dataset: h5py.Dataset, index: int) -> float:
    """One number of a data set of any dimensions, counted in C order."""
    if dataset.ndim == 0:
        return float(dataset[()])
    return float(dataset[tuple(np.unravel_index(index, dataset.shape))])
