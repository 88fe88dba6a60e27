"""``posterior.nc``: draws, pointwise log likelihood and predictions, as ArviZ reads them.

One netCDF file of groups, which ArviZ 0.x opens as InferenceData and 1.x as a DataTree.  It is
written block by block through h5netcdf: a run's pointwise arrays never lie in memory together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np

from ..errors import InputError

Pointwise = Mapping[str, tuple[np.ndarray, np.ndarray]]
BLOCK = 1024  # reflections in a chunk of the file


@dataclass(frozen=True)
class Variable:
    """Draws of one unknown.

    Attributes:
        draws: (D, ...), one chain.
        dims: names of the axes after the draws.
    """

    draws: np.ndarray
    dims: tuple[str, ...] = ()


def write_posterior(
    path: str | Path,
    posterior: Mapping[str, Variable],
    pointwise: Iterable[Pointwise],
    observed: Mapping[str, np.ndarray],
    reflections: Mapping[str, np.ndarray],
    coords: Mapping[str, np.ndarray] | None = None,
    labels: Mapping[str, tuple[str, np.ndarray]] | None = None,
    attrs: Mapping[str, str] | None = None,
) -> None:
    """Write the groups posterior, log_likelihood, posterior_predictive and observed_data.

    Pointwise values are float32 with dims (chain, draw, reflection).

    Args:
        posterior: the unknowns, D draws each.
        pointwise: {term: (ln p (D, b), replicate (D, b))} of b reflections at a time, one block
            after the other.
        observed: (n,) by term, in the order of the reflections.
        reflections: (n,) coordinates of the reflections: image, h, k, l.
        coords: values along the posterior's dims; 0, 1, ... where absent.
        labels: further coordinates of the posterior: (dim, values) by name.
        attrs: of the file.

    Raises:
        ValueError: numbers of draws or of reflections differ.
        InputError: the file cannot be written.
    """
    counts = {len(v.draws) for v in posterior.values()}
    if len(counts) != 1:
        raise ValueError(f"one number of draws is needed, not {sorted(counts)}")
    n_draws = counts.pop()
    try:
        with h5netcdf.File(path, "w") as file:
            file.attrs.update(attrs or {})
            _write_posterior(file, posterior, n_draws, coords or {}, labels or {})
            _write_observed(file, observed, reflections)
            _write_pointwise(file, pointwise, tuple(observed), reflections, n_draws)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from None


def _write_posterior(file, posterior, n_draws, coords, labels) -> None:
    sizes: dict[str, int] = {"chain": 1, "draw": n_draws}
    for variable in posterior.values():
        sizes |= dict(zip(variable.dims, np.shape(variable.draws)[1:], strict=True))
    group = _group(file, "posterior", sizes, coords)
    for name, (dim, values) in labels.items():
        _variable(group, name, (dim,), values)
    for name, variable in posterior.items():
        dims = ("chain", "draw", *variable.dims)
        on = [label for label, (dim, _) in labels.items() if dim in dims]
        _variable(group, name, dims, np.asarray(variable.draws)[None], on)


def _write_observed(file, observed, reflections) -> None:
    n = len(next(iter(reflections.values())))
    group = _group(file, "observed_data", {"reflection": n}, {})
    for name, values in reflections.items():
        _variable(group, name, ("reflection",), values)
    for name, values in observed.items():
        _variable(group, name, ("reflection",), np.float32(values), reflections)


def _write_pointwise(file, pointwise, terms, reflections, n_draws) -> None:
    n = len(next(iter(reflections.values())))
    dims, groups = ("chain", "draw", "reflection"), []
    for title in ("log_likelihood", "posterior_predictive"):
        group = _group(file, title, {"chain": 1, "draw": n_draws, "reflection": n}, {})
        for name, values in reflections.items():
            _variable(group, name, ("reflection",), values)
        for name in terms:
            variable = group.create_variable(
                name,
                dims,
                "f4",
                chunks=(1, n_draws, max(min(n, BLOCK), 1)),
                compression="gzip",
                compression_opts=1,
                shuffle=True,
            )
            variable.attrs["coordinates"] = " ".join(reflections)
        groups.append(group)
    first = 0
    for block in pointwise:
        width = len(next(iter(block.values()))[0][0])
        for name in terms:
            for group, values in zip(groups, block[name], strict=True):
                if np.shape(values) != (n_draws, width):
                    raise ValueError(f"{name}: shape {np.shape(values)}, not {(n_draws, width)}")
                group[name][0, :, first : first + width] = np.float32(values)
        first += width
    if first != n:
        raise ValueError(f"pointwise terms of {first} reflections, {n} were observed")


def _group(file, title: str, sizes: Mapping[str, int], coords: Mapping[str, np.ndarray]) -> Any:
    group = file.create_group(title)
    group.dimensions = dict(sizes)
    for dim, size in sizes.items():
        _variable(group, dim, (dim,), coords.get(dim, np.arange(size)))
    return group


def _variable(group, name: str, dims: tuple[str, ...], values, coordinates=()) -> None:
    values = np.asarray(values)
    if values.dtype.kind in "UO":
        values = values.astype(object)
        variable = group.create_variable(name, dims, h5py.string_dtype())
        variable[...] = values
    else:
        variable = group.create_variable(name, dims, values.dtype, data=values)
    if coordinates:
        variable.attrs["coordinates"] = " ".join(coordinates)
