"""Read pulse energies of shots from the file of a monitor: CSV, TOML or HDF5, in any unit."""

from __future__ import annotations

import csv
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry.experiments import Still
from ..util.errors import InputError
from .boundary import content, refusing, regular_file
from .hdf5_images import is_hdf5
from .hdf5_links import data_sets, follow, open_hdf5, whole_numbers

_MAX_BYTES = 2**28
_MAX_SHOTS = 10_000_000
_MAX_OF_MEDIAN = 1e3  # no pulse is as bright: a number beyond is a monitor's fault
_NAMES = ("identifier", "image", "experiment", "name", "id")
_ENERGIES = ("energy", "pulse_energy", "intensity", "i0", "value")


def with_pulse_energies(stills: Sequence[Still], path: str | Path) -> tuple[Still, ...]:
    """The stills with ln of their pulse energy over the median of all; NaN where it is unknown.

    A CSV file has the columns ``identifier`` and ``energy``, or a number on each line.  A TOML file
    has a line ``"identifier" = energy`` for each still, or ``energy = [...]``.  An HDF5 file, given
    as ``FILE.h5:/path``, has an array of numbers.  Numbers without identifiers belong to the frames
    of the image file if all stills are in one file, else to the stills in their order.  A number
    that is not positive (a shot that the monitor missed), or is 10³ times the median and more,
    counts as unknown.

    Raises:
        InputError: the file cannot be read, has none of these formats, or has no energy of any
            still.
    """
    named = _read(str(path))
    if isinstance(named, Mapping):
        energy = np.array([named.get(still.identifier, math.nan) for still in stills], float)
    else:
        energy = _in_order(named, stills, str(path))
    good = np.isfinite(energy) & (energy > 0)
    if not good.any():
        raise InputError(
            f"{path}: it has a pulse energy of none of the {len(stills)} stills; the first is "
            f"called {stills[0].identifier}"
        )
    log_energy = np.full(len(energy), np.nan)
    log_energy[good] = np.log(energy[good])  # of ln, since ratios of what a file holds overflow
    log_energy -= np.nanmedian(log_energy)
    log_energy[log_energy > math.log(_MAX_OF_MEDIAN)] = np.nan
    pairs = zip(stills, log_energy, strict=True)
    return tuple(replace(still, log_pulse_energy=float(x)) for still, x in pairs)


def _in_order(values: np.ndarray, stills: Sequence[Still], path: str) -> np.ndarray:
    if len({still.image_path for still in stills}) == 1:
        frames = np.array([still.frame for still in stills])
        if frames.max() < len(values):
            return values[frames]
    if len(values) == len(stills):
        return values
    raise InputError(
        f"{path}: {len(values)} pulse energies of {len(stills)} stills; give one for each frame of "
        "the image file, or name the stills"
    )


def _read(path: str) -> Mapping[str, float] | np.ndarray:
    """Energies by identifier, or an array of energies."""
    name, _, inside = path.partition(":/")
    file = Path(name)
    if not regular_file(file):
        raise InputError(f"{file}: no such file; give pulse energies as CSV, TOML or HDF5")
    if is_hdf5(file):
        return _of_hdf5(file, inside)
    try:
        text = content(file, _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file}: is not text; give pulse energies as CSV, TOML or HDF5") from None
    return _of_toml(file, text) if file.suffix.lower() == ".toml" else _of_csv(file, text)


def _of_hdf5(file: Path, inside: str) -> np.ndarray:
    with open_hdf5(file) as opened, refusing(file, "pulse energies"):
        if inside:
            found = follow(opened, inside, file)
            if found is None:
                raise InputError(f"{file}: it has no data set /{inside}; correct the path after :/")
        else:
            arrays = [
                d for _, d in data_sets(opened, file) if d.ndim == 1 and d.dtype.kind in "iuf"
            ]
            if len(arrays) != 1:
                raise InputError(
                    f"{file}: {len(arrays)} arrays may be the pulse energies; give {file}:/path"
                )
            found = arrays[0]
        array = whole_numbers(found, file, "pulse energies")
        if array.ndim != 1 or array.shape[0] > _MAX_SHOTS:
            raise InputError(f"{file}: {array.name} is no list of pulse energies; give another")
        return np.asarray(array[()], float)


def _of_toml(file: Path, text: str) -> Mapping[str, float] | np.ndarray:
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: not a TOML file ({said}); correct it") from None
    only = next(iter(table.values())) if len(table) == 1 else None
    if isinstance(only, dict):
        table = only
    elif isinstance(only, list):
        return np.array([_number(x) for x in only])
    return {name: _number(value) for name, value in table.items()}


def _of_csv(file: Path, text: str) -> Mapping[str, float] | np.ndarray:
    with refusing(file, "pulse energies"):
        lines = (line for line in text.splitlines() if line.strip() and line.strip()[0] != "#")
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    if not rows:
        raise InputError(f"{file}: it is empty; give pulse energies as CSV, TOML or HDF5")
    head = [cell.lower() for cell in rows[0]]
    energy = next((head.index(name) for name in _ENERGIES if name in head), None)
    if energy is None:
        if not all(math.isfinite(_number(cell)) or not cell for cell in rows[0]) or len(head) > 1:
            wanted = f"{_NAMES[0]} and {_ENERGIES[0]}"
            raise InputError(f"{file}: its first line names no column of energies; name {wanted}")
        return np.array([_number(row[0]) for row in rows])
    values = [_number(row[energy]) if energy < len(row) else math.nan for row in rows[1:]]
    name = next((head.index(name) for name in _NAMES if name in head), None)
    if name is None:
        return np.array(values)
    names = [row[name] if name < len(row) else "" for row in rows[1:]]
    return dict(zip(names, values, strict=True))


def _number(value: Any) -> float:
    """The number, or the number that a text stands for; else NaN."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
