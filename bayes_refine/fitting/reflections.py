"""Measured and expected numbers of every reflection of a run, at the fit's mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from .. import infer
from ..physics.observations import SpotStatistics
from ..physics.priors import Priors
from ..physics.reference import Reference, wilson_mean
from ..physics.variance_of_J import variance_of_J
from .measure_batch import MIN_COVERED, Batch
from .state import State, images_of


@dataclass(frozen=True)
class Reflections:
    """Predicted reflections of a run, flat over images (N in all), in single precision.

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

    @property
    def J_model(self) -> np.ndarray:
        """(N,) expected photons, scale·I_ref; NaN without a reference."""
        return self.scale * self.intensity_reference

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
        return self.variance_at(self.expected)

    @property
    def variance_model(self) -> np.ndarray:
        """(N,) expected variance of J at I_ref where there is one, for residuals only."""
        known = np.isfinite(self.intensity_reference)
        return self.variance_at(np.where(known, self.intensity_reference, self.expected))

    @property
    def measured(self) -> np.ndarray:
        """(N,) bool: more than 60 % of the template on usable pixels, whatever was expected."""
        finite = np.isfinite(self.J) & np.isfinite(self.variance)
        return (self.covered > MIN_COVERED) & finite


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
        [
            reflections_of_batch(
                batch, obs, ref, model, images_of(state, batch.images, batch.where.shape[0]), priors
            )
            for batch, obs in pairs
        ]
    )


def together(parts: Sequence[Reflections]) -> Reflections:
    """The reflections of several batches as one."""
    return Reflections(
        *(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Reflections))
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
