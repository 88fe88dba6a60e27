"""HDF5 files of Jungfraujoch: geometry, lattices and integrated reflections.

In the lab frame x is along fast, y along slow and z along the beam, so that a pixel lies at
((x − x₀)·size, (y − y₀)·size, distance).  The table ``jungfraujoch.toml`` has the names of data
sets; a user's file of the same form replaces some of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import gemmi
import h5py
import numpy as np

from ..geometry.crystal import Crystal, cell_from_real_axes
from ..geometry.detector import Beam, Detector
from ..geometry.experiments import Experiments, Still
from ..util.errors import InputError
from .boundary import refusing
from .expt.foreign import as_experiments
from .gemmi_files import whole_indices
from .hdf5_links import child, follow, open_hdf5, read_numbers
from .unmerged import Unmerged

UP = np.array([0.0, 1.0, 0.0])  # normal of a horizontal plane of polarisation
Names = Mapping[str, Mapping[str, Any]]


def read_names(path: str | Path | None = None) -> Names:
    """The packaged table of names; names in a TOML file replace those of the table.

    Raises:
        InputError: the file is absent or no TOML, or it has a name that the table does not have.
    """
    packaged = resources.files(__package__).joinpath("jungfraujoch.toml").read_text("utf-8")
    names: dict[str, dict[str, Any]] = tomllib.loads(packaged)
    if path is None:
        return names
    path = Path(path)
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file ({error})") from None
    for section, entries in own.items():
        if section not in names or not isinstance(entries, dict):
            raise InputError(f"{path}: unknown section [{section}]; known are {', '.join(names)}")
        for key, value in entries.items():
            if key not in names[section]:
                known = ", ".join(names[section])
                raise InputError(f"{path}: unknown name {section}.{key}; known are {known}")
            if isinstance(names[section][key], list) and isinstance(value, str):
                value = [value]
            if not _like(value, names[section][key]):
                raise InputError(f"{path}: {section}.{key} must not be {repr(value)[:200]}")
            names[section][key] = value
    return names


def _like(value: Any, packaged: Any) -> bool:
    """Whether a value can stand for one of the table: a number, names, or a name with a number."""
    if isinstance(packaged, list):
        return isinstance(value, list) and all(isinstance(x, str) for x in value)
    if isinstance(packaged, float):
        return type(value) in (int, float) and abs(value) <= 1
    if type(value) is not str or not value:
        return False
    try:
        return "%" not in packaged or value % 0 != value % 1
    except (TypeError, ValueError):  # another number of %, or something else after it
        return False


def is_jungfraujoch(path: Path, names: Names | None = None) -> bool:
    """Whether an HDF5 file has lattices at one of their names."""
    try:
        with open_hdf5(path) as file:
            return _dataset(file, (names or read_names())["crystal"]["lattice"], path) is not None
    except InputError:
        return False


class _Source:
    """An open file, and the data sets that the table of names finds in it."""

    def __init__(self, file: h5py.File, path: Path, names: Names) -> None:
        self.file, self.path, self.names = file, path, names

    def find(self, section: str, key: str) -> h5py.Dataset | None:
        return _dataset(self.file, self.names[section][key], self.path)

    def need(self, section: str, key: str) -> np.ndarray:
        found = self.find(section, key)
        if found is None:
            tried = ", ".join(self.names[section][key])[:200]
            raise InputError(
                f"{self.path}: no {section}.{key} at {tried}; name it with --names FILE.toml"
            )
        return read_numbers(found, self.path, f"{section}.{key}")

    def number(self, section: str, key: str, default: float | None = None) -> float:
        if default is not None and self.find(section, key) is None:
            return default
        found = self.need(section, key).ravel()
        if not len(found):
            raise InputError(f"{self.path}: {section}.{key} is empty; write the file anew")
        return float(found[0])


def _dataset(file: h5py.File, places: list[str], path: Path) -> h5py.Dataset | None:
    for place in places:
        found = follow(file, place, path)
        if isinstance(found, h5py.Dataset):
            return found
    return None


def experiments_of_jungfraujoch(
    path: str | Path,
    space_group: gemmi.SpaceGroup | None = None,
    names: Names | None = None,
) -> Experiments:
    """Read the indexed images of a file, each a still; the same file holds the images.

    Args:
        space_group: instead of the one in the file. names: of :func:`read_names`.

    Raises:
        InputError: a needed data set is at none of its names, or no image was indexed.
    """
    path = Path(path)
    with open_hdf5(path) as file, refusing(path, "a file of Jungfraujoch"):
        source = _Source(file, path, names or read_names())
        group = space_group or _space_group(source)
        detector, wavelengths = _detector(source), _wavelengths(source)
        stills = []
        for n, axes in _lattices(source):
            wavelength = wavelengths[n] if n < len(wavelengths) else wavelengths[0]
            beam = Beam(float(wavelength), np.array([0.0, 0.0, 1.0]), UP, 1.0)
            crystal = Crystal(np.linalg.inv(axes), group.hall)
            stills.append(Still("", path.resolve(), n, beam, detector, crystal))
    if not stills:
        raise InputError(f"{path}: no image was indexed; there is nothing to fit")
    return as_experiments(stills, path)


def unmerged_of_jungfraujoch(
    path: str | Path,
    space_group: gemmi.SpaceGroup | None = None,
    cell: gemmi.UnitCell | None = None,
    names: Names | None = None,
) -> Unmerged:
    """Read the integrated reflections of a file; ε_r = |s0 + A·h| − 1/λ of each lattice.

    Args:
        space_group, cell: instead of the group in the file and the median of the lattices.
        names: of :func:`read_names`.

    Raises:
        InputError: as :func:`experiments_of_jungfraujoch`, or nothing was integrated.
    """
    path = Path(path)
    with open_hdf5(path) as file, refusing(path, "a file of Jungfraujoch"):
        source = _Source(file, path, names or read_names())
        group = space_group or _space_group(source)
        at = source.names["reflections"]
        tops = (follow(file, place, path) for place in at["group"])
        top = next((group for group in tops if isinstance(group, h5py.Group)), None)
        wavelengths = _wavelengths(source)
        parts: list[tuple[np.ndarray, ...]] = []
        cells: list[tuple[float, ...]] = []
        for n, axes in _lattices(source):
            table = None if top is None else child(top, at["image"] % n, path)
            if not isinstance(table, h5py.Group) or at["h"] not in table:
                continue
            read = {
                key: read_numbers(child(table, at[key], path), path, f"{table.name}/{at[key]}")
                for key in ("h", "k", "l", "intensity", "sigma", "x_px", "y_px")
            }
            if {column.shape for column in read.values()} != {(len(read["h"].ravel()),)}:
                raise InputError(f"{path}: columns of {table.name} differ in length; copy it anew")
            hkl = whole_indices(np.stack([read[k] for k in "hkl"], axis=1))[0]
            wavelength = float(wavelengths[n] if n < len(wavelengths) else wavelengths[0])
            s = hkl @ np.linalg.inv(axes).T + np.array([0, 0, 1 / wavelength])
            columns = [read[k] for k in ("intensity", "sigma", "x_px", "y_px")]
            excitation = np.linalg.norm(s, axis=1) - 1 / wavelength
            parts.append((hkl, np.full(len(hkl), len(cells)), excitation, *columns))
            cells.append(cell_from_real_axes(axes).parameters)
        middle = float(source.names["conventions"]["first_pixel_middle"])
    if not sum(len(p[0]) for p in parts):
        raise InputError(f"{path}: no integrated reflections; fit the images instead")
    hkl, image, excitation, intensity, sigma, x, y = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return Unmerged.observed(
        hkl=hkl,
        J=intensity.astype(float),
        sigma=sigma.astype(float),
        batch=image + 1,
        excitation_error=excitation,
        xy_px=np.stack([x, y], axis=1).astype(float) + (0.5 - middle),
        cell=cell or gemmi.UnitCell(*np.median(cells, axis=0)),
        space_group=group,
        source=str(path),
        wavelength=float(np.mean(wavelengths)),
    )


def _lattices(source: _Source) -> list[tuple[int, np.ndarray]]:
    """For each indexed image its index and its axes a, b, c, the rows of (3, 3), Å."""
    lattices = source.need("crystal", "lattice").reshape(-1, 9).astype(float)
    indexed = source.find("crystal", "indexed")
    good = np.ones(len(lattices), bool)
    if indexed is not None:
        said = read_numbers(indexed, source.path, "crystal.indexed").ravel() != 0
        if len(said) != len(lattices):
            raise InputError(
                f"{source.path}: {len(said)} images are indexed or not, and {len(lattices)} have "
                "lattices; write the file anew"
            )
        good = said
    good = good & np.isfinite(lattices).all(axis=1)
    volume = np.abs(np.linalg.det(np.where(good[:, None], lattices, 1.0).reshape(-1, 3, 3)))
    return [(int(n), lattices[n].reshape(3, 3)) for n in np.flatnonzero(good & (volume > 1.0))]


def _wavelengths(source: _Source) -> np.ndarray:
    """Wavelengths, Å: one for all images, or one for each."""
    found = source.need("geometry", "wavelength_angstrom").astype(float).ravel()
    if not len(found) or not ((found > 0) & np.isfinite(found)).all():
        raise InputError(f"{source.path}: a wavelength must be positive")
    return found


def _space_group(source: _Source) -> gemmi.SpaceGroup:
    found = source.find("crystal", "space_group")
    group = None
    if found is not None and found.size == 1:
        value = np.ravel(found[()])[0]
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        group = (
            gemmi.find_spacegroup_by_number(int(text))
            if text.isdecimal() and len(text) < 4
            else gemmi.find_spacegroup_by_name(text)
        )
    if group is None:
        raise InputError(f"{source.path}: no space group in this file; give --space-group")
    return group


def _detector(source: _Source) -> Detector:
    """One panel normal to the beam."""
    size = 1e3 * source.number("geometry", "pixel_size_m")
    center = [source.number("geometry", f"beam_center_{k}_px") for k in "xy"]
    distance = 1e3 * source.number("geometry", "distance_m")
    images = source.find("geometry", "images")
    if images is None or images.ndim != 3:
        tried = ", ".join(source.names["geometry"]["images"])[:200]
        raise InputError(f"{source.path}: no stack of images at {tried}; --names can say where")
    middle = float(source.names["conventions"]["first_pixel_middle"])
    corner = (middle - 0.5 - np.array(center)) * size
    low = source.number("geometry", "underload", -np.inf)
    high = source.number("geometry", "saturation", np.inf)
    zero = np.zeros(1)
    return Detector(
        origin_mm=np.array([[*corner, distance]]),
        fast=np.array([[1.0, 0.0, 0.0]]),
        slow=np.array([[0.0, 1.0, 0.0]]),
        pixel_size_mm=np.full((1, 2), size),
        shape=np.array([images.shape[1:]]),
        trusted_range=np.array([[low, high]]),
        gain=np.ones(1),
        pedestal=zero,
        thickness_mm=zero,
        mu_per_mm=zero,
        untrusted=((),),
    )
