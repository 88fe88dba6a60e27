"""Learn widths of priors from the run: of mosaic shapes, and of frames' scales in a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar

from .. import infer
from ..geometry.experiments import Still
from ..infer.density import place_of
from ..physics.priors import Priors
from ..util.status import Kind

SITE, OF_SWEEP = "mosaic_shape", "mosaic_shape_sweep"
LEARNED = "mosaic_shape_sd", "frame_log_G_sd"
TOLD = 0.1  # of a number's precision: where the likelihood has less, a search's tolerance matters


def learned_numbers(priors: Priors) -> dict[str, float]:
    """The numbers of the priors that are learned."""
    return {name: getattr(priors, name) for name in LEARNED}


def learned_from(
    fit: infer.Fit, priors: Priors, used: Priors, stills: Sequence[Still] = ()
) -> Priors:
    """The priors with the sds that the images of a fit make most likely.

    They are the sd of mosaic shapes, or where frames share one the sd of ln G of a frame about the
    smooth one of its sweep.

    A posterior N(m, s²) under the prior N(0, τ₀²) is of a likelihood of variance v, 1/v = 1/s² −
    1/τ₀², and mean m·v/s².  With each number integrated out, τ is the mode of

        ln N(ln τ; ln τ_prior, sd) + Σ ln N(m·v/s²; 0, τ² + v).

    A search ends a fraction of a posterior sd from the mode m, which m·v/s² multiplies by v/s²:
    numbers whose likelihood has less than a tenth of the precision are left out.

    Args:
        fit: of a round. priors: as given; τ_prior is its ``mosaic_shape_sd``, sd its
            ``log_mosaic_shape_sd_sd``. used: of the round, with τ₀. stills: of the fit.
    """
    sites = {site.name for site in fit.sites}
    if SITE not in sites:
        return priors
    good = fit.status == Kind.CONVERGED
    if OF_SWEEP in sites:
        return replace(priors, frame_log_G_sd=_of_frames(fit, good, priors, used, stills))
    mean, sd = (np.asarray(x, float)[good].ravel() for x in (fit.values()[SITE], fit.sd(SITE)))
    prior = priors.mosaic_shape_sd, priors.log_mosaic_shape_sd_sd
    return replace(priors, mosaic_shape_sd=_most_likely(mean, sd, used.mosaic_shape_sd, prior))


def _of_frames(fit, good: np.ndarray, priors: Priors, used: Priors, stills) -> float:
    """The sd of ln G of frames about the smooth one of their sweep, which is taken as known."""
    values, column = fit.values(), place_of(fit.sites, "log_G")[1]
    variance = np.linalg.inv(fit.image_precision)[:, column, column][:, 0, 0]
    places = [still.sweep for still in stills]
    good = good & np.array([bool(p.member.any()) for p in places])
    off = np.ravel(values["log_G"]) - np.array([p.smooth for p in places]) @ values["log_G_sweep"]
    prior = priors.frame_log_G_sd, priors.log_frame_log_G_sd_sd
    return _most_likely(off[good], np.sqrt(variance[good]), used.frame_log_G_sd, prior)


def _most_likely(
    mean: np.ndarray, sd: np.ndarray, used: float, prior: tuple[float, float]
) -> float:
    """The sd τ of posteriors ``mean`` ± ``sd`` (k,) that a prior N(0, ``used``²) has; ``prior`` is
    the median of τ and the sd of ln τ."""
    information = sd**-2.0 - used**-2.0
    told = np.isfinite(information) & (information > TOLD * sd**-2.0) & np.isfinite(mean)
    variance = 1 / information[told]
    centre2 = (mean[told] * variance / sd[told] ** 2) ** 2
    middle, width = np.log(prior[0]), prior[1]

    def lost(log_sd: float) -> float:
        total = np.exp(2 * log_sd) + variance
        unlikely = np.sum(np.log(total) + centre2 / total)
        return float(0.5 * unlikely + 0.5 * ((log_sd - middle) / width) ** 2)

    limits = (middle - 4 * width, middle + 4 * width)
    found = minimize_scalar(lost, bounds=limits, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))
