"""Measured and expected numbers of every reflection of a run, at the fit's mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np

from .. import infer
from ..physics.observations import SpotStatistics
from ..physics.priors import Priors
from ..physics.reference import Reference, wilson_mean
from ..physics.variance_of_J import variance_of_J
from ..util.large_arrays import joined, release, room, slices, taken
from .measure_batch import MIN_COVERED, Batch
from .state import State, images_of


@dataclass(frozen=True)
class Reflections:
    """Predicted reflections of a run, flat over images (N in all), in single precision.

    Columns of a large run are in files (``util.large_arrays``), and so is what :meth:`column` makes
    of them.

    Attributes:
        image: (N,) index of the still in the run. hkl: (N, 3) as indexed, not reduced.
        d: (N,) Å. panel: (N,); xy_px: (N, 2) predicted centre.
        frame: (N, 2, 2) d(ε_1, ε_2)/d(x, y), Å⁻¹ per pixel.
        polarisation: (N,).
        J: (N,) photons of the spot, profile-fitted.
        variance_background (photons²), variance_signal (photons), relative_variance: (N,) v₀, v₁,
            v₂ of Var[J] = v₀ + v₁·J + v₂·J²: background, counting, model error.
        expected: (N,) I from which weights are computed.  It is I_ref, but for free reflections and
            those without a reference the mean intensity at their resolution, since a weight must
            not depend on I_ref there; in a fit without a reference the estimate of all images.
        background, covered, contested, stray: (N,) as ``measuring.statistics.Statistics``.
        intensity_reference: (N,) I_ref, NaN where unknown; reference_error: its relative sd.
        free, informs: (N,) bool: in the free set; an observation of the fit.
        scale: (N,) G·B_term·p·pol, photons per unit of I.
        partiality, excitation_error (Å⁻¹): (N,) at the mode.
        spot_moment: (N, 3) M11, M22, M12 at the mode, Å⁻².
    """

    image: np.ndarray
    hkl: np.ndarray
    d: np.ndarray
    panel: np.ndarray
    xy_px: np.ndarray
    frame: np.ndarray
    polarisation: np.ndarray
    J: np.ndarray
    variance_background: np.ndarray
    variance_signal: np.ndarray
    relative_variance: np.ndarray
    expected: np.ndarray
    background: np.ndarray
    covered: np.ndarray
    contested: np.ndarray
    stray: np.ndarray
    intensity_reference: np.ndarray
    reference_error: np.ndarray
    free: np.ndarray
    informs: np.ndarray
    scale: np.ndarray
    partiality: np.ndarray
    excitation_error: np.ndarray
    spot_moment: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def some(self, rows: slice) -> Reflections:
        """Reflections that follow each other."""
        return Reflections(*(getattr(self, f.name)[rows] for f in fields(self)))

    def taken(self, rows: np.ndarray) -> Reflections:
        """The reflections with these numbers (k,), in this order."""
        return Reflections(*(taken(getattr(self, f.name), rows) for f in fields(self)))

    def release(self) -> None:
        """Give back the memory of columns that are in files."""
        release(*vars(self).values())

    def column(self, of: Callable[[Reflections], np.ndarray]) -> np.ndarray:
        """(N, ...) values of a function of the reflections, computed of a slice at a time."""
        n = len(self)
        kind = of(self.some(slice(0)))
        found = room((n, *kind.shape[1:]), kind.dtype)
        for part in slices(n, found, *vars(self).values()):
            found[part] = of(self.some(part))
        return found

    def where(self, chosen: Callable[[Reflections], np.ndarray]) -> np.ndarray:
        """(k,) ascending numbers of the reflections for which a function is true."""
        is_chosen = self.column(chosen)
        rows, k = room(int(np.count_nonzero(is_chosen)), int), 0
        for part in slices(len(self), is_chosen, rows):
            here = part.start + np.flatnonzero(is_chosen[part])
            rows[k : k + len(here)] = here
            k += len(here)
        return rows

    def by_image(self, of: Callable[[Reflections], np.ndarray], n_images: int) -> np.ndarray:
        """(n_images,) sum over the reflections of each image of a function of the reflections."""
        found = np.zeros(n_images)
        for part in slices(len(self), *vars(self).values()):
            some = self.some(part)
            found += np.bincount(some.image, of(some), n_images)
        return found

    @property
    def pixel_inv_angstrom(self) -> float:
        """Median size of a pixel in reciprocal space, Å⁻¹."""
        return float(np.median(self.column(lambda r: np.sqrt(np.abs(np.linalg.det(r.frame))))))

    @property
    def J_model(self) -> np.ndarray:
        """(N,) expected photons, scale·I_ref; NaN without a reference."""
        return self.column(lambda r: r.scale * r.intensity_reference)

    def variance_at(self, intensity: np.ndarray) -> np.ndarray:
        """(N,) variance of J, photons², at true intensities (N,)."""
        return variance_of_J(
            self.scale * intensity,
            self.variance_background,
            self.variance_signal,
            self.relative_variance,
        )

    @property
    def variance(self) -> np.ndarray:
        """(N,) expected variance of J, photons², at ``expected``, for weights."""
        return self.column(lambda r: r.variance_at(r.expected))

    @property
    def variance_model(self) -> np.ndarray:
        """(N,) expected variance of J at I_ref where there is one, for residuals only."""

        def variance(r: Reflections) -> np.ndarray:
            known = np.isfinite(r.intensity_reference)
            return r.variance_at(np.where(known, r.intensity_reference, r.expected))

        return self.column(variance)

    @property
    def measured(self) -> np.ndarray:
        """(N,) bool: more than 60 % of the template on usable pixels, whatever was expected."""

        def measured(r: Reflections) -> np.ndarray:
            finite = np.isfinite(r.J) & np.isfinite(r.variance_at(r.expected))
            return (r.covered > MIN_COVERED) & finite

        return self.column(measured)


def reflections_of(
    batches: Iterable[Batch],
    observations: Iterable[SpotStatistics],
    ref: Reference,
    model: infer.Model,
    state: State,
    priors: Priors,
) -> Reflections:
    """The reflections of all batches with the model's expectations at ``state``."""
    pairs = zip(batches, observations, strict=True)
    return together(
        reflections_of_batch(
            batch, obs, ref, model, images_of(state, batch.images, batch.where.shape[0]), priors
        )
        for batch, obs in pairs
    )


def together(parts: Iterable[Reflections]) -> Reflections:
    """The reflections of several batches as one; those of one batch are in memory at a time."""
    return Reflections(
        *joined([getattr(part, f.name) for f in fields(Reflections)] for part in parts)
    )


def reflections_of_batch(
    batch: Batch,
    obs: SpotStatistics,
    ref: Reference,
    model: infer.Model,
    here: State,
    priors: Priors,
) -> Reflections:
    """The reflections of a batch.

    Args:
        here: the batch's part of a state, ``state.images_of``.
    """
    p, s, where = batch.predictions, batch.statistics, batch.where
    values = infer.evaluate(model, here, obs, priors)
    sites = {name: where.flat(value) for name, value in values.items()}
    known = np.isfinite(batch.intensity_reference) & ~batch.free
    mean = wilson_mean(ref.d, ref.intensity, p.d)
    columns = {
        "d": p.d,
        "xy_px": p.xy_px,
        "frame": p.frame,
        "polarisation": p.polarisation,
        "J": s.value[:, 0],
        "variance_background": s.variance_background[:, 0],
        "variance_signal": s.variance_signal[:, 0],
        "relative_variance": sites.get("relative_variance", np.zeros(len(p))),
        "expected": np.where(known, ref.lookup(p.hkl), mean),
        "background": s.background,
        "covered": s.covered,
        "contested": s.contested,
        "stray": s.stray,
        "intensity_reference": batch.intensity_reference,
        "reference_error": where.flat(np.asarray(obs.reference_error)),
        "scale": sites["scale"] * p.polarisation,
        **{k: sites[k] for k in ("partiality", "excitation_error", "spot_moment")},
    }
    return Reflections(
        image=(p.image + batch.images.start).astype(np.int32),
        hkl=p.hkl.astype(np.int32),
        panel=p.panel.astype(np.int16),
        free=batch.free,
        informs=batch.informs,
        **{name: np.asarray(values, np.float32) for name, values in columns.items()},
    )
