"""Write ``posterior.nc``: draws, pointwise log likelihood and predictions, for ArviZ.

It is one netCDF file with groups, which ArviZ 0.x opens as InferenceData and 1.x as a DataTree.  It
is written block by block through h5netcdf, since the pointwise arrays of a run can exceed memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np

from ..util.large_arrays import release
from ..util.sink import Sink, sink_for

Pointwise = Mapping[str, tuple[np.ndarray, np.ndarray]]
BLOCK = 1024  # reflections in a chunk of the file
MAX_POINTWISE = 10**8  # largest number of pointwise values of a term


@dataclass(frozen=True)
class Variable:
    """Draws of one unknown.

    Attributes:
        draws: (c, d, ...), c chains of d draws.
        dims: names of the axes after the draws.
    """

    draws: np.ndarray
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class About:
    """Coordinates of a posterior, and attributes of its file.

    Attributes:
        coords: values along dims of the posterior; 0, 1, ... for dims that are absent.
        labels: further coordinates of the posterior: (dim, values) by name.
        attrs: of the file.
    """

    coords: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    attrs: Mapping[str, str] = field(default_factory=dict)


def pointwise_draws(shape: tuple[int, int], n_reflections: int, at_most: int) -> np.ndarray:
    """Choose evenly spaced draws of each chain that get pointwise values.

    There are at most ``at_most`` in all chains together, fewer if a term would otherwise have over
    10⁸ values (a file of a gigabyte), and at least two in each chain.

    Args:
        shape: number of chains, and of draws in each.
    """
    chains, each = shape
    room = min(at_most, MAX_POINTWISE // max(n_reflections, 1))
    return np.arange(0, each, max(1, min(-(-chains * each // max(room, 1)), each // 2)))


def write_posterior(
    path: str | Path,
    posterior: Mapping[str, Variable],
    pointwise: Iterable[Pointwise],
    observed: Mapping[str, np.ndarray],
    reflections: Mapping[str, np.ndarray],
    about: About | None = None,
    stats: Mapping[str, np.ndarray] | None = None,
    kept: np.ndarray | None = None,
) -> None:
    """Write the groups posterior, log_likelihood, posterior_predictive and observed_data.

    The group sample_stats is added if there are ``stats``.  Pointwise values are float32 with dims
    (chain, draw, reflection).

    Args:
        posterior: the unknowns, c chains of d draws each.
        pointwise: blocks of b reflections, one after the other, each a mapping
            {term: (ln p (c, k, b), replicate (c, k, b))}.
        observed: (n,) by term, in the order of the reflections.
        reflections: (n,) coordinates of the reflections: image, h, k, l.
        about: coordinates along the axes, and attributes of the file.
        stats: (c, d) each, by ArviZ's names.
        kept: (k,) indices of the draws with pointwise values; all draws by default.

    Raises:
        ValueError: numbers of draws or of reflections differ.
        InputError: the file cannot be written.
    """
    counts = {np.shape(v.draws)[:2] for v in posterior.values()}
    if len(counts) != 1:
        raise ValueError(f"one number of chains and draws is needed, not {sorted(counts)}")
    sizes = dict(zip(("chain", "draw"), counts.pop(), strict=True))
    kept = np.arange(sizes["draw"]) if kept is None else kept
    with sink_for(path) as sink, h5netcdf.File(sink, "w") as file:
        about = about or About()
        file.attrs.update(about.attrs)
        _write_posterior(file, posterior, sizes, about.coords, about.labels)
        _write_stats(file, stats or {}, sizes)
        _write_observed(file, observed, reflections)
        blocks = _checked(pointwise, sink)
        _write_pointwise(file, blocks, tuple(observed), reflections, sizes["chain"], kept)


def _checked(blocks: Iterable[Pointwise], sink: Sink) -> Iterator[Pointwise]:
    """Pass the blocks on; raise when the disk is full."""
    for block in blocks:
        sink.check()
        yield block


def _write_posterior(file, posterior, sizes, coords, labels) -> None:
    sizes = dict(sizes)
    for variable in posterior.values():
        sizes |= dict(zip(variable.dims, np.shape(variable.draws)[2:], strict=True))
    group = _group(file, "posterior", sizes, coords)
    for name, (dim, values) in labels.items():
        _variable(group, name, (dim,), values)
    for name, variable in posterior.items():
        dims = ("chain", "draw", *variable.dims)
        on = [label for label, (dim, _) in labels.items() if dim in dims]
        _variable(group, name, dims, variable.draws, on)


def _write_stats(file, stats, sizes) -> None:
    if stats:
        group = _group(file, "sample_stats", sizes, {})
        for name, values in stats.items():
            _variable(group, name, ("chain", "draw"), values)


def _write_observed(file, observed, reflections) -> None:
    n = len(next(iter(reflections.values())))
    group = _group(file, "observed_data", {"reflection": n}, {})
    for name, values in reflections.items():
        _variable(group, name, ("reflection",), values)
    for name, values in observed.items():
        _variable(group, name, ("reflection",), np.asarray(values, np.float32), reflections)


def _write_pointwise(file, pointwise, terms, reflections, n_chains, kept) -> None:
    n = len(next(iter(reflections.values())))
    sizes = {"chain": n_chains, "draw": len(kept), "reflection": n}
    dims, groups = ("chain", "draw", "reflection"), []
    for title in ("log_likelihood", "posterior_predictive"):
        group = _group(file, title, sizes, {"draw": kept})
        for name, values in reflections.items():
            _variable(group, name, ("reflection",), values)
        for name in terms:
            # random numbers: gzip would take most of the time for a fifth of the size
            chunks = (1, len(kept), max(min(n, BLOCK), 1))
            variable = group.create_variable(name, dims, "f4", chunks=chunks)
            variable.attrs["coordinates"] = " ".join(reflections)
        groups.append(group)
    first = 0
    for block in pointwise:
        width = np.shape(next(iter(block.values()))[0])[-1]
        expected = (n_chains, len(kept), width)
        for name in terms:
            for group, values in zip(groups, block[name], strict=True):
                if np.shape(values) != expected:
                    raise ValueError(f"{name}: shape {np.shape(values)}, not {expected}")
                group[name][:, :, first : first + width] = np.asarray(values, np.float32)
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
    elif values.dtype == bool:  # netCDF has no such type; xarray writes it so
        variable = group.create_variable(name, dims, "i1", data=values.astype("i1"))
        variable.attrs["dtype"] = "bool"
    else:
        variable = group.create_variable(name, dims, values.dtype, data=values)
        release(values)
    if coordinates:
        variable.attrs["coordinates"] = " ".join(coordinates)
