"""A merge from end to end: integrated stills → scales → true intensities."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .. import infer
from ..geometry.miller import find, numbered, pack_hkl, resolution
from ..geometry.predict import MAX_CANDIDATES
from ..geometry.symmetry import asu_keys
from ..indexing.reindex import Reindexing
from ..indexing.unmerged_alike import unmerged_alike
from ..io.unmerged import Unmerged, usable
from ..physics.reference import Reference, check_symmetry, free_set, wilson_mean
from ..util.errors import InputError
from ..util.large_arrays import release, slices, stored, trim
from ..util.progress import SILENT, Listener
from ..util.status import Kind, Status
from .merged_intensities import Estimate, Intensities, together
from .observations import ENOUGH, ScalingPriors, prepare
from .pieces import whole_reflections
from .scaling import Halves, Scaled, fit_scales, refit_halves


@dataclass(frozen=True)
class MergeSettings:
    """Settings of a merge.

    Attributes:
        d_min: Å, 0 for all resolutions.
        free_fraction, seed: of the free set; the seed is also that of the halves and draws.
        anomalous: keep Friedel mates apart, in scaling and merging.
        refit: also fit each half of the images alone, for a CC½ of halves that share nothing.
    """

    d_min: float = 0.0
    free_fraction: float = 0.05
    seed: int = 0
    anomalous: bool = False
    refit: bool = False


@dataclass(frozen=True)
class MergeRun:
    """A merged run.

    Attributes:
        data: as read, but all images indexed alike; reindexing: the operation of each image.
        scaled: scales. intensities: of the unique reflections.
        free: (m,) bool, of ``intensities``. d: (m,) Å.
        halves: the halves fitted separately, or None.
        seconds: by stage. model, settings, priors: what the run was made with.
    """

    data: Unmerged
    reindexing: Reindexing
    scaled: Scaled
    intensities: Intensities
    free: np.ndarray
    d: np.ndarray
    halves: Halves | None
    seconds: dict[str, float]
    model: infer.Model
    settings: MergeSettings
    priors: ScalingPriors

    @cached_property
    def _posterior_mean(self) -> np.ndarray:
        """(m,) posterior mean of I of each reflection of ``scaled.measured``, NaN if none."""
        found = self.intensities
        wanted = asu_keys(np.asarray(self.scaled.measured.hkl), self.data.space_group)
        at, known = find(wanted, pack_hkl(found.merged.hkl))
        return np.where(known, found.posterior.intensity[at], np.nan)

    def expected(self, rows: slice | np.ndarray) -> np.ndarray:
        """(k,) g·I of some observations, I the posterior mean; NaN where there is none."""
        d = self.scaled.measured
        return np.asarray(d.scale[rows]) * self._posterior_mean[np.asarray(d.code[rows])]


def merge_run(
    data: Unmerged,
    model: infer.Model,
    settings: MergeSettings | None = None,
    priors: ScalingPriors | None = None,
    reference: Reference | None = None,
    estimate: Estimate = together,
    progress: Listener = SILENT,
) -> MergeRun:
    """Scale and merge integrated stills.

        merged = merge_run(read_unmerged("unmerged.mtz"), load_model("latent"))
        merged.intensities.merged.intensity  # of the likelihood alone, (m,)

    Args:
        model: ``latent``, or ``latent_reference`` with a reference.
        reference: informs scales and intensities, except in the free set; leave it out if it is
            only for comparison.
        estimate: how intensities follow from scales: ``merged_intensities.together``,
            ``near_reference``, or with ``settings.anomalous`` ``mates.apart``.

    Raises:
        InputError: the reference does not fit, or no observation is within the resolution limit.
        ValueError: JAX is in single precision.
    """
    settings = settings or MergeSettings()
    if reference is not None:
        check_symmetry(reference, data.cell, data.space_group, data.source)
    seconds = {}

    def stage(name: str, line: str, call: Callable):
        progress.say(line)
        started = time.perf_counter()
        value = call()
        trim()
        seconds[name] = time.perf_counter() - started
        return value

    data = mergeable(data, settings.d_min)
    data, reindexing = unmerged_alike(data, reference, settings.free_fraction, settings.seed)
    if len(reindexing.ambiguity) > 1:
        progress.say(str(reindexing))
    columns: dict[str, Any] = vars(data)
    columns = {name: stored(x) for name, x in columns.items() if isinstance(x, np.ndarray)}
    data = replace(data, **columns)
    obs = prepare(
        data,
        settings.d_min,
        reference,
        settings.free_fraction,
        settings.seed,
        anomalous=settings.anomalous,
    )
    release(*vars(data).values())
    scaled = stage(
        "scales",
        f"scales of {obs.n_images} images: {len(obs.J)} observations of {len(obs.hkl)} reflections",
        lambda: fit_scales(obs, model, priors, seed=settings.seed, progress=progress),
    )
    found = stage(
        "intensities",
        "true intensities",
        lambda: estimate(scaled.measured, scaled.prior, data.cell, data.space_group, settings.seed),
    )
    halves = None
    if settings.refit:
        halves = stage(
            "halves",
            "fitting each half of the images alone",
            lambda: refit_halves(obs, model, priors, settings.seed),
        )
    hkl = found.merged.hkl
    run = MergeRun(
        data=data,
        reindexing=reindexing,
        scaled=scaled,
        intensities=found,
        free=free_set(hkl, settings.free_fraction, settings.seed, data.space_group),
        d=resolution(hkl, data.cell),
        halves=halves,
        seconds=seconds,
        model=model,
        settings=settings,
        priors=priors or ScalingPriors(),
    )
    check_finite(run)
    return run


def mergeable(data: Unmerged, d_min: float) -> Unmerged:
    """The usable observations to d_min (Å).

    Raises:
        InputError: nothing to that resolution, one image, no reflection twice, no signal, or
            indices so high that the reflections between are too many.
    """
    data = usable(data)
    near, best, least = np.zeros(len(data), bool), np.inf, np.inf
    for rows in slices(len(data), data.hkl_asu):
        d = resolution(data.hkl_asu[rows], data.cell)
        near[rows] = d >= d_min * (1 - 1e-6)
        best, least = min(best, d.min()), d[near[rows]].min(initial=least)
    if not near.any():
        raise InputError(f"{data.source}: no reflection to {d_min:g} Å; the best is {best:.2f}")
    data = data.select(near, f"beyond {d_min:g} Å")
    n, n_images, d_min = len(data), int(data.image.max()) + 1, float(least)
    laue = 2 * len(data.space_group.operations().sym_ops)
    possible = 4 / 3 * np.pi * data.cell.volume / (d_min**3 * laue)
    if possible > MAX_CANDIDATES:  # tables of completeness list them all
        raise InputError(
            f"{data.source}: {possible:.0e} reflections are possible to {d_min:.2f} Å, the "
            "smallest d of this file: give --d-min"
        )
    try:
        some = slice(None, None, max(1, n // ENOUGH))
        wilson_mean(resolution(data.hkl_asu[some], data.cell), data.J[some], np.ones(1))
    except InputError as error:
        raise InputError(f"{data.source}: {error}") from None
    if n_images < 2:
        raise InputError(
            f"{data.source}: all {n} usable rows are of one image, batch {data.batch[0]}: scaling "
            "and merging need two or more"
        )
    if not _any_twice(data.hkl_asu):
        raise InputError(
            f"{data.source}: no reflection occurs twice among {n} rows of {n_images} images: there "
            "is nothing to merge"
        )
    return data


def _any_twice(hkl: np.ndarray) -> bool:
    """Whether a reflection occurs twice in ``hkl`` (n, 3)."""
    known = np.zeros(0, int)
    for rows in slices(len(hkl), hkl):
        known = np.union1d(known, pack_hkl(hkl[rows]))
        if len(known) < rows.stop:
            return True
    return False


def image_table(run: MergeRun) -> dict[str, np.ndarray]:
    """Columns of ``images.csv``: one row an image, in the order of batch numbers.

    identifier (``Unmerged.name``), status, n_reflections, cc_model (Pearson CC of J and g·I, I
    the posterior mean), G, B (Å², both about the mean image), width (of the partiality curve,
    over the run's), each with its Laplace sd; where indexing is ambiguous, reindex and
    reindex_log_odds.
    """
    s, d = run.scaled, run.scaled.measured
    n = s.observations.n_images
    image = np.asarray(d.image)
    G, width = np.exp(s.log_G), np.exp(s.log_width)
    columns: dict[str, np.ndarray] = {
        "identifier": np.array([run.data.name(b) for b in numbered(run.data.batch)[0]], object),
        "status": s.fit.status,
        "n_reflections": np.bincount(image, minlength=n),
        "G": G,
        "G_sd": G * s.log_G_sd,
        "B": s.B,
        "B_sd": s.B_sd,
        "width": width,
        "width_sd": width * s.log_width_sd,
        "cc_model": _correlations(run),
    }
    return columns | (run.reindexing.columns() if len(run.reindexing.ambiguity) > 1 else {})


def _correlations(run: MergeRun) -> np.ndarray:
    """(n_images,) Pearson CC of J and g·I; NaN for fewer than three reflections or no spread."""
    d, n = run.scaled.measured, run.scaled.observations.n_images

    def sums(terms: Callable[..., tuple[np.ndarray, ...]]) -> np.ndarray:
        """Of ``terms`` of (image, J, g·I), by image."""
        found: np.ndarray | float = 0.0
        for rows in whole_reflections(np.asarray(d.code)):
            image, J, expected = (
                np.asarray(d.image[rows]),
                np.asarray(d.J[rows]),
                run.expected(rows),
            )
            known = np.isfinite(expected)
            image, J, expected = image[known], J[known], expected[known]
            found = found + np.array([np.bincount(image, x, n) for x in terms(image, J, expected)])
        return np.asarray(found)

    count, *totals = sums(lambda image, J, expected: (np.ones(len(J)), J, expected))
    mean_J, mean_expected = (total / np.maximum(count, 1) for total in totals)

    def products(image, J, expected):
        x, y = J - mean_J[image], expected - mean_expected[image]
        return x * x, y * y, x * y

    xx, yy, xy = sums(products)
    norm = np.sqrt(xx * yy)
    good = (count >= 3) & (norm > 0)
    return np.where(good, xy / np.where(good, norm, 1.0), np.nan)


def all_images(run: MergeRun, table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of :func:`image_table` with a row for each image without a usable observation.

    The status of such an image says so, its numbers are NaN.  Rows are in the order of batch
    numbers.
    """
    empty = run.data.empty
    fitted = numbered(run.data.batch)[0]
    order = np.argsort(np.r_[fitted, empty], kind="stable")
    none = Status(Kind.TOO_FEW, "no usable row")
    blank: dict[str, object] = {"status": none, "n_reflections": 0, "reindex": ""}

    def more(name: str) -> np.ndarray:
        if name == "identifier":
            return np.array([run.data.name(b) for b in empty], object)
        return np.full(len(empty), blank.get(name, np.nan), object)

    if not len(empty):
        return dict(table)
    return {
        name: np.r_[np.asarray(column, object), more(name)][order] for name, column in table.items()
    }


def check_finite(run: MergeRun) -> None:
    """InputError where a scale, a shared number or an intensity did not come out finite.

    Checked before anything is written: files of a merge hold no inf, and NaN only for "not
    measured".
    """
    s, post, merged = run.scaled, run.intensities.posterior, run.intensities.merged
    numbers = {
        "the scale of an image": (s.log_G, s.log_G_sd, s.B, s.B_sd, s.log_width, s.log_width_sd),
        "a number that images share": tuple(x for pair in s.shared.values() for x in pair),
        "a posterior intensity": tuple(
            getattr(post, name)
            for name in ("intensity", "intensity_sd", "amplitude", "amplitude_sd")
        ),
        "a merged intensity": (merged.intensity, merged.sigma),
    }
    largest = float(np.finfo(np.float32).max)  # of an MTZ file
    for what, arrays in numbers.items():
        if not all((np.abs(np.asarray(x, float)) < largest).all() for x in arrays):
            raise InputError(
                f"{run.data.source}: {what} did not come out finite, and nothing was written; "
                "leave out images or rows that are far from the others"
            )


NATURAL = {"R0": "R0_inv_angstrom", "dispersion": "dispersion_angstrom", "nu": "student_t_nu"}


def shared_draws(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(D,) draws of each scalar that the images share, on the natural scale, by name."""
    found = {}
    for site, values in draws.items():
        if values.ndim == 1:
            name = site.removeprefix("log_")
            found[NATURAL.get(name, name)] = np.exp(values) if name != site else values
    return found


def shared_values(run: MergeRun, draws: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Value at the mode and sd of each number of :func:`shared_draws`.

    The sd is half the central 68 % of Laplace draws, since the sd of a log-normal is mostly that of
    the tail.
    """
    mode = {name: np.atleast_1d(value) for name, (value, _) in run.scaled.shared.items()}
    mode = shared_draws({name: value for name, value in mode.items() if len(value) == 1})
    return {
        name: {
            "value": float(mode[name][0]),
            "sd": float(np.diff(np.quantile(values, [0.159, 0.841]))[0] / 2),
        }
        for name, values in shared_draws(draws).items()
    }
