"""Compare the factored likelihood with likelihoods of single pixels on one run, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .. import infer
from ..fitting import tables
from ..fitting.loop import RunFit, fit_run
from ..fitting.problem import Settings
from ..fitting.state import State
from ..geometry.crystal import rotation_vector_mrad
from ..geometry.experiments import Still
from ..geometry.symmetry import asu_map
from ..io.hdf5_links import follow, open_hdf5, read_numbers
from ..io.protocols import Images
from ..merging.agreement import pearson, r1_intensity
from ..merging.average import merge
from ..physics.priors import Priors
from ..physics.reference import Reference, free_set
from ..util.errors import InputError
from ..util.folder import all_or_none
from ..util.output import jsonable, versions, write_summary, write_table
from ..util.progress import SILENT, Listener
from . import pixel_noise
from .fit import PixelModel, fit_pixels
from .pixels import Pixels

T = TypeVar("T")
NEAR = 3e-4  # Å⁻¹: reflections this near the sphere show errors of ε_r
ERRORS = (
    "log_model_error",
    "model_error_fall",
    "speckle_variance",
    "log_position_error",
    "position_error_fall",
    "log_shape_error",
)
N_TERMS = 4  # statistics of a reflection that the model "still" uses
STATISTICS_HELD = (
    "statistics",
    "response",
    "variance_background",
    "variance_signal",
    "width",
    "template_moment",
)
PIXELS_HELD = ("photons", "usable", "variance", "background", "centre", "to_pixel")


@dataclass(frozen=True)
class TrueImages:
    """The truth of n images: A (n, 3, 3) Å⁻¹; G and B (Å²), (n,) or None if unknown."""

    A: np.ndarray
    G: np.ndarray | None
    B: np.ndarray | None

    def select(self, images: Sequence[int]) -> TrueImages:
        """The truth of some of the images."""
        rows = np.asarray(images, int)
        of_some = (None if x is None else x[rows] for x in (self.G, self.B))
        return TrueImages(self.A[rows], *of_some)


@dataclass(frozen=True)
class Contestant:
    """One method's fit of a run.

    Attributes:
        name: for people. run: the fit, the last one.
        numbers: data of a reflection. bytes_per_image: of the arrays that they are held in,
            geometry aside.
    """

    name: str
    run: RunFit
    numbers: float
    bytes_per_image: float


def read_truth(path: str | Path, images: slice) -> TrueImages:
    """The true setting matrices of some images, and scales and B where the file has them.

    Raises:
        InputError: no HDF5 file, or none with a data set ``A`` of these images.
    """
    path, n = Path(path), images.stop - images.start
    with open_hdf5(path) as file:
        there = {name: follow(file, name, path) for name in ("A", "G", "B")}
        found = {
            name: np.atleast_1d(read_numbers(thing, path, name))[images]
            for name, thing in there.items()
            if thing is not None
        }
    if "A" not in found or found["A"].shape[1:] != (3, 3):
        raise InputError(f"{path}: has no data set 'A' of true setting matrices, (images, 3, 3)")
    for name, values in found.items():
        if len(values) != n or (name != "A" and values.ndim > 1):
            raise InputError(
                f"{path}: knows {name} of {len(values)} of these {n} stills; "
                "give the truth of the run itself"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {name} has numbers that are not finite; write it anew")
    return TrueImages(found["A"], found.get("G"), found.get("B"))


class Models(NamedTuple):
    """The model of the statistics, and the one of ``bayes_refine.per_pixel.pixels.Pixels``."""

    factored: infer.Model
    of_pixels: infer.Model


def compare(
    stills: Sequence[Still],
    ref: Reference,
    reader: Images,
    models: Models,
    priors: Priors,
    settings: Settings,
    times: int = 2,
    progress: Listener = SILENT,
) -> list[Contestant]:
    """Fit a run to the factored statistics, and to its pixels under each of :func:`noises`.

    Args:
        times: number of repetitions of each method.  The seconds of the last count; from the
            second on nothing is left to compile.

    Raises:
        InputError: as :func:`~bayes_refine.fitting.loop.fit_run`.
    """

    def repeated(name: str, call: Callable[[], T]) -> T:
        for k in range(times):
            progress.say(f"{name}, run {k + 1} of {times}")
            found = call()
        return found

    run = repeated(
        "factored",
        lambda: fit_run(stills, ref, reader, models.factored, priors, settings, progress),
    )
    observed = run.observations
    informs = max(int(np.sum(observed.fit)), 1)
    held = sum(np.asarray(getattr(observed, name)).nbytes for name in STATISTICS_HELD)
    found = [Contestant("factored", run, N_TERMS, held / len(stills))]
    values = run.fit.values()
    errors: State = {name: values[name] for name in ERRORS if name in values}
    for name, noise in noises(values, priors).items():

        def call(noise: pixel_noise.PixelLikelihood = noise) -> tuple[RunFit, Pixels]:
            pixel = PixelModel(models.of_pixels, noise, errors)
            return fit_pixels(
                run.indexed, ref, reader, models.factored, pixel, priors, settings, progress
            )

        pixel_run, pixels = repeated(f"per pixel, {name}", call)
        held = sum(np.asarray(getattr(pixels, name)).nbytes for name in PIXELS_HELD)
        numbers = float(np.sum(pixels.usable)) / informs
        found.append(Contestant(f"per pixel, {name}", pixel_run, numbers, held / len(stills)))
    return found


def noises(values: State, priors: Priors) -> dict[str, pixel_noise.PixelLikelihood]:
    """Likelihoods of a pixel by name; the robust one takes the fractional error that the
    factored fit learned (``values``), since single pixels do not determine it.
    """
    found: dict[str, pixel_noise.PixelLikelihood] = {
        "observed variance": pixel_noise.observed_variance,
        "expected variance": pixel_noise.expected_variance,
        "Poisson": pixel_noise.poisson,
    }
    if "log_model_error" in values and math.isfinite(priors.student_t_nu):
        a = float(np.exp(values["log_model_error"]))
        found["Student-t"] = partial(pixel_noise.student_t, nu=priors.student_t_nu, model_error=a)
    return found


def scores(
    contestant: Contestant, ref: Reference, settings: Settings, truth: TrueImages | None = None
) -> dict[str, float]:
    """Scores of one method, by name with unit; NaN where a score cannot be known.

    Intensities are merged by inverse variance at fixed scales, all methods alike.
    """
    run, r = contestant.run, contestant.run.reflections
    used = tables.usable_images(run)
    rows = np.flatnonzero(r.measured & used[r.image])
    n = len(run.stills)
    found = {"images used": float(used.sum())}
    found["CC(J, J_model), median"] = _median(tables.image_table(run)["cc_model"][:n][used])
    found |= _against_truth(run, used, truth)
    if len(rows):
        hkl = asu_map(r.hkl[rows], ref.space_group)[0]
        merged = merge(
            hkl, r.J[rows], r.variance[rows], r.scale[rows], r.image[rows], seed=settings.seed
        )
        known = ref.lookup(merged.hkl)
        free = free_set(merged.hkl, settings.free_fraction, settings.seed, ref.space_group)
        found |= {
            "CC1/2": pearson(*merged.half_intensity.T),
            "CC to the reference, free set": pearson(merged.intensity[free], known[free]),
            "R1(I) to the reference, free set": r1_intensity(merged.intensity[free], known[free]),
            "R1(I) to the reference": r1_intensity(merged.intensity, known),
        }
    seconds = [sum(getattr(m, f"seconds_{x}") for m in run.movement) for x in ("measure", "fit")]
    return found | {
        "measuring, ms an image": 1e3 * seconds[0] / n,
        "fitting, ms an image": 1e3 * seconds[1] / n,
        "steps of all rounds": float(sum(m.iterations for m in run.movement)),
        "numbers a reflection": contestant.numbers,
        "data held, kB an image": contestant.bytes_per_image / 1e3,
    }


def write_comparison(
    out_dir: str | Path, table: Mapping[str, Mapping[str, float]], about: Mapping[str, Any]
) -> None:
    """Write ``comparison.csv`` (a row for each quantity, a column for each method) and
    ``summary.json``.

    Args:
        table: scores by method. about: command, settings and the like.

    Raises:
        InputError: the folder cannot be written.
    """
    quantities = list(next(iter(table.values())))
    columns: dict[str, Any] = {"quantity": np.array(quantities, object)}
    columns |= {
        name: np.array([score.get(q, math.nan) for q in quantities])
        for name, score in table.items()
    }
    with all_or_none(out_dir) as work:
        write_table(work / "comparison.csv", columns)
        summary = {**about, "versions": versions(), "comparison": table}
        write_summary(work / "summary.json", jsonable(summary))


def _against_truth(run: RunFit, used: np.ndarray, truth: TrueImages | None) -> dict[str, float]:
    """Errors and pulls (rms of error/sd, 1 where sd are right) of the images that were used."""
    names = (
        "ε_r error, rms near the sphere, median, 1e-5 Å⁻¹",
        "orientation error, median, mrad",
        "ln G error, robust sd",
        "B error, robust sd, Å²",
        "pull of rotation, median |error|/sd/0.6745",
        "pull of ln G, robust sd",
        "pull of B, robust sd",
    )
    if truth is None or not used.any():
        return dict.fromkeys(names, math.nan)
    good, fit = np.flatnonzero(used), run.fit
    excitation, turned = [], []
    for i in good:
        still, A, r = run.stills[i], truth.A[i], run.reflections
        q = r.hkl[r.image == i]
        true, now = (
            np.linalg.norm(still.beam.s0 + q @ setting.T, axis=1) - 1 / still.beam.wavelength
            for setting in (A, still.crystal.A)
        )
        near = np.abs(true) < NEAR
        excitation.append(np.sqrt(np.mean((now - true)[near] ** 2)) if near.any() else math.nan)
        turned.append(rotation_vector_mrad(still.crystal.A @ np.linalg.inv(A)))
    turned_mrad = np.array(turned)
    values, sd = fit.values(), fit.sd
    pulls = np.abs(turned_mrad / sd("rotation_mrad").reshape(len(used), 3)[good])
    found = [
        1e5 * _median(np.array(excitation)),
        _median(np.linalg.norm(turned_mrad, axis=1)),
        *[math.nan] * 2,
        _median(pulls) / 0.6745,
        *[math.nan] * 2,
    ]
    for k, (name, true) in enumerate((("log_G", truth.G), ("B", truth.B))):
        if true is None or name not in values:
            continue
        error = values[name][good, 0] - (np.log(true) if name == "log_G" else true)[good]
        error -= np.median(error)  # a common factor of G is a matter of units
        found[2 + k] = robust_sd(error)
        found[5 + k] = robust_sd(error / sd(name)[good, 0])
    return dict(zip(names, found, strict=True))


def robust_sd(x: np.ndarray) -> float:
    """1.4826 times the median distance from the median: no common offset, no outliers."""
    return 1.4826 * float(np.median(np.abs(x - np.median(x)))) if len(x) > 1 else math.nan


def _median(x: np.ndarray) -> float:
    x = x[np.isfinite(x)]
    return float(np.median(x)) if len(x) else math.nan
