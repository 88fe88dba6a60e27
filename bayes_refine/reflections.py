"""What a fit says of every reflection of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np

from . import infer
from .forward import Observations
from .pilot import State, images_of
from .priors import Priors
from .reference import Reference, wilson_mean
from .rounds import MIN_COVERED, Batch


@dataclass(frozen=True)
class Reflections:
    """Predicted reflections of a run, flat over images (N in all), in single precision.

    Attributes:
        image: (N,) index of the still in the run. hkl: (N, 3) as indexed, not reduced.
        d: (N,) Å. panel: (N,); xy_px: (N, 2) predicted centre.
        frame: (N, 2, 2) d(ε_1, ε_2)/d(x, y), Å⁻¹ per pixel.
        polarisation: (N,).
        J: (N,) profile-fitted intensity, photons.
        variance: (N,) expected variance of J, photons²: counting and, if the model says so,
            model error.  Free reflections and those without a reference get the mean intensity
            of their resolution for I_ref: no weight knows what it must not see.
        variance_model: (N,) the same at I_ref for all, for residuals; no weight.
        variance_background, variance_signal, fractional_error: (N,) its pieces, whatever I is:
            variance_background + variance_signal·g·I + (fractional_error·g·I)².
        background, covered, contested: (N,) as ``measure.Statistics``.
        intensity_reference: (N,) I_ref, NaN where unknown.
        free, informs: (N,) bool: the free set, and what the fit was conditioned on.
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
    variance: np.ndarray
    variance_model: np.ndarray
    variance_background: np.ndarray
    variance_signal: np.ndarray
    fractional_error: np.ndarray
    background: np.ndarray
    covered: np.ndarray
    contested: np.ndarray
    intensity_reference: np.ndarray
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
        """(N,) expected intensities, photons; NaN without a reference."""
        return self.scale * self.intensity_reference

    @property
    def measured(self) -> np.ndarray:
        """(N,) bool: more than 60 % of the template on usable pixels, whatever was expected."""
        finite = np.isfinite(self.J) & np.isfinite(self.variance)
        return (self.covered > MIN_COVERED) & finite


def reflections_of(
    batches: Iterable[Batch],
    observations: Iterable[Observations],
    ref: Reference,
    model: infer.Model,
    state: State,
    priors: Priors,
) -> Reflections:
    """The reflections of all batches with what the model says of them at ``state``."""
    pairs = zip(batches, observations, strict=True)
    parts = [_of_batch(batch, obs, ref, model, state, priors) for batch, obs in pairs]
    return Reflections(
        *(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Reflections))
    )


def _of_batch(batch: Batch, obs: Observations, ref, model, state, priors) -> Reflections:
    p, s, where = batch.predictions, batch.statistics, batch.where
    known = np.isfinite(batch.intensity) & ~batch.free
    expected = np.where(known, batch.intensity, wilson_mean(ref.d, ref.intensity, p.d))
    blind = replace(obs, intensity_reference=where.pad(p.polarisation * expected))
    here = images_of(state, batch.images, where.shape[0])

    def flat_sites(obs: Observations) -> dict[str, np.ndarray]:
        sites = infer.evaluate(model, here, obs, priors)
        return {name: where.flat(value) for name, value in sites.items()}

    sites = flat_sites(blind)
    scale = sites["scale"] * p.polarisation
    intensity = np.where(np.isfinite(batch.intensity), batch.intensity, expected)

    def counting(intensity):
        return s.variance_background[:, 0] + scale * intensity * s.variance_signal[:, 0]

    def variance(sites, intensity):
        return sites.get("intensity_variance", counting(intensity))

    beyond = np.maximum(variance(sites, expected) - counting(expected), 0)
    J_expected = np.maximum(scale * expected, 1e-300)

    columns = {
        "d": p.d,
        "xy_px": p.xy_px,
        "frame": p.frame,
        "polarisation": p.polarisation,
        "J": s.value[:, 0],
        "variance": variance(sites, expected),
        "variance_model": variance(flat_sites(obs), intensity),
        "variance_background": s.variance_background[:, 0],
        "variance_signal": s.variance_signal[:, 0],
        "fractional_error": np.sqrt(beyond) / J_expected,
        "background": s.background,
        "covered": s.covered,
        "contested": s.contested,
        "intensity_reference": batch.intensity,
        "scale": scale,
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
