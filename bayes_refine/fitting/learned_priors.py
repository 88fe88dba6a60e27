"""Learn the width of a prior from the run: how uneven mosaic spreads are about different axes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar

from .. import infer
from ..physics.priors import Priors
from ..util.status import Kind

SITE = "mosaic_shape"
TOLD = 0.1  # of a number's precision: where the likelihood has less, a search's tolerance matters


def learned_from(fit: infer.Fit, priors: Priors, used: Priors) -> Priors:
    """The priors with the sd of mosaic shapes that the images of a fit make most likely.

    A posterior N(m, s²) under the prior N(0, τ₀²) is of a likelihood of variance v, 1/v = 1/s² −
    1/τ₀², and mean m·v/s².  With each number integrated out, τ is the mode of

        ln N(ln τ; ln τ_prior, sd) + Σ ln N(m·v/s²; 0, τ² + v).

    A search ends a fraction of a posterior sd from the mode m, which m·v/s² multiplies by v/s²:
    numbers whose likelihood has less than a tenth of the precision are left out.

    Args:
        fit: of a round. priors: as given; τ_prior is its ``mosaic_shape_sd``, sd its
            ``log_mosaic_shape_sd_sd``. used: of the round, with τ₀.
    """
    if SITE not in {site.name for site in fit.sites}:
        return priors
    good = fit.status == Kind.CONVERGED
    mean, sd = (np.asarray(x, float)[good].ravel() for x in (fit.values()[SITE], fit.sd(SITE)))
    information = sd**-2.0 - used.mosaic_shape_sd**-2.0
    told = np.isfinite(information) & (information > TOLD * sd**-2.0) & np.isfinite(mean)
    variance = 1 / information[told]
    centre2 = (mean[told] * variance / sd[told] ** 2) ** 2
    middle, width = np.log(priors.mosaic_shape_sd), priors.log_mosaic_shape_sd_sd

    def lost(log_sd: float) -> float:
        total = np.exp(2 * log_sd) + variance
        unlikely = np.sum(np.log(total) + centre2 / total)
        return float(0.5 * unlikely + 0.5 * ((log_sd - middle) / width) ** 2)

    limits = (middle - 4 * width, middle + 4 * width)
    found = minimize_scalar(lost, bounds=limits, method="bounded", options={"xatol": 1e-4})
    return replace(priors, mosaic_shape_sd=float(np.exp(found.x)))
